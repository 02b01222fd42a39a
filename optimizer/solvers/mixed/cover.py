"""The cheapest replicas of several types that are dealt all micro-batches of a step together."""

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray
from stagewright.optimizer.solvers.labels.kernels.library import call


def cheapest_covers(
    dealt: IntArray, each: FloatArray, num: int, must: int, limits: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return the least prices of replicas that are dealt all micro-batches, and the replicas (N, K).

    Where no price is below its limit, that is the price, and there are no replicas.

    Args:
        dealt: (N, K) most micro-batches of a replica of each type; 0: there is none.
        each: (K,) prices, none negative.
        num: micro-batches.
        must: of this type there is at least one replica.
        limits: (N,)
    """
    prices, replicas = np.array(limits), np.zeros(dealt.shape, dtype=np.int64)
    call("cheapest_covers", dealt, each, num, must, prices, replicas)
    return prices, replicas
