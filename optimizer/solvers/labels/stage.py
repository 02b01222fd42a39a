"""What stages and plans cost at scale, compiled (kernels/stage.h)."""

import numpy as np

from stagewright.optimizer.costs.cost import FloatArray, IntArray

from .arrays import Costs
from .kernels.library import call

SLACK = 1 + 1e-12
"""Loads within a threshold up to rounding are within it."""


def stage_loads_ms(costs: Costs, rows: IntArray) -> FloatArray:
    """Return the loads without window of a plan's stages (first, behind last, kind, replicas)."""
    loads = np.empty(len(rows))
    call("stage_loads", costs, rows, loads)
    return loads


def total_ms(costs: Costs, rows: IntArray) -> tuple[float, float]:
    """Return (largest load, sum of times) of a plan (first, behind last, kind, replicas of each stage)."""
    total = np.empty(2)
    call("plan_total", costs, rows, total)
    return float(total[0]), float(total[1])
