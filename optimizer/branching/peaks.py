"""By how much each stage exceeds, for one unit, what its layers keep together: tables as in sums.py.

While layer i runs, forward or backward, the layers of its stage up to it keep what they keep, later ones keep
nothing (yet, or any more), and the layer itself holds some bytes beyond. So a stage holds at most

    sum of what is kept + max over its layers i of (working bytes of i - what later layers of the stage keep)

Layers of a stage run in the order of their numbers, the end of the model (the loss) last.
"""

import numpy as np

from .cuts import FloatArray, GraphCuts


def beyond_kept(cuts: GraphCuts, kept: FloatArray, working: FloatArray) -> FloatArray:
    """Return (n + 1, n + 1) the maxima of the equation above, in bytes; entries of no stage mean nothing.

    Of a chain they are running maxima over the blocks between neighbouring cuts; else each layer counts for
    the pairs of cuts that it lies between.

    Args:
        cuts: a chain's must be prefixes of the layers in their own order.
        kept: (L + 1,) bytes that each layer keeps for a unit, and last, the end of the model.
        working: (L + 1,) bytes beyond, while a layer runs.
    """
    if not working.any():
        return np.zeros((len(cuts), len(cuts)))
    return _of_chain(cuts, kept, working) if cuts.is_chain else _of_family(cuts, kept, working)


def _of_chain(cuts: GraphCuts, kept: FloatArray, working: FloatArray) -> FloatArray:
    num_blocks = len(cuts) - 1
    sums = np.cumsum(kept)
    blocks = np.maximum(cuts.entry - 1, 0)  # An empty model has its end before every cut.
    highest = np.full(num_blocks, -np.inf)
    np.maximum.at(highest, blocks, working + sums)
    behind = np.concatenate([[0.0], sums])[cuts.sizes]
    behind[-1] = sums[-1]
    table = np.zeros((len(cuts), len(cuts)))
    for first in range(num_blocks):
        running = np.maximum.accumulate(highest[first:])
        table[first, first + 1 :] = running - behind[first + 1 :]
    return table


def _of_family(cuts: GraphCuts, kept: FloatArray, working: FloatArray) -> FloatArray:
    assert cuts.inside is not None
    end = np.arange(len(cuts)) == len(cuts) - 1
    member = np.concatenate([cuts.inside, end[:, None]], axis=1)
    own = member * kept
    later = own.sum(axis=1, keepdims=True) - np.cumsum(own, axis=1)
    table = np.zeros((len(cuts), len(cuts)))
    for layer, num_bytes in enumerate(working):
        if not num_bytes:
            continue
        before, behind = (np.flatnonzero(member[:, layer] == has) for has in (False, True))
        place = np.ix_(before, behind)
        beyond = num_bytes + later[before, layer][:, None] - later[behind, layer]
        table[place] = np.maximum(table[place], beyond)
    return table
