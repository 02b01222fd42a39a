"""What one stage costs, compiled; the equations are those of optimizer/costs/cost.py."""

from stagewright.optimizer.costs.cost import IntArray

from .chain import Costs
from .compiled import compiled, compiled_inside

SLACK = 1 + 1e-12
"""Loads within a threshold up to rounding are within it."""


@compiled_inside
def units_held(costs: Costs, replicas: int, behind: int) -> int:
    """Return the most units that a replica holds, with some replicas in the stages behind its own."""
    num = costs.num_microbatches
    dealt = (num + replicas - 1) // replicas
    if costs.holds_all:
        return dealt
    held = ((behind + replicas) * dealt + num - 1) // num
    return min(held, dealt)


@compiled_inside
def message_ms(
    costs: Costs, kind: int, first: int, last: int, replicas: int
) -> tuple[float, float]:
    """Return forward and backward messages of one micro-batch into a stage."""
    far = 1 if replicas > costs.near[kind] else 0
    return costs.forward_ms[far, last, first], costs.backward_ms[far, last, first]


@compiled_inside
def gradient_sum_ms(costs: Costs, kind: int, num_bytes: float, replicas: int) -> float:
    """Return the time of the ring all-reduce over a stage's replicas."""
    if num_bytes <= 0 or replicas == 1:
        return 0.0
    level = 1 if replicas > costs.inside[kind] else 0
    part = num_bytes / replicas
    slowest = 0.0
    for link in range(2):
        step_ms = costs.sum_latency_ms[level, link] + part * costs.sum_ms_per_byte[level, link]
        slowest = max(slowest, step_ms)
    return 2 * (replicas - 1) * slowest


@compiled
def load_ms(costs: Costs, kind: int, first: int, last: int, replicas: int) -> tuple[float, float]:
    """Return (load without window, one micro-batch with its messages) of a stage."""
    forward, backward = message_ms(costs, kind, first, last, replicas)
    compute = costs.compute_ms[kind, last, first]
    if costs.waits:
        compute += forward + backward
    dealt = (costs.num_microbatches + replicas - 1) // replicas
    end = costs.end_ms[kind, last, first]
    end += gradient_sum_ms(costs, kind, costs.own_bytes[last, first], replicas)
    load = dealt * compute + end
    if costs.is_step_time:
        load -= compute
    if costs.waits:
        return load, compute
    messages = dealt - 1 if costs.is_step_time else dealt
    return max(load, messages * max(forward, backward)), compute + forward + backward


@compiled_inside
def window_ms(
    costs: Costs, kind: int, first: int, last: int, replicas: int, behind: int, behind_ms: float
) -> float:
    """Return the window load of a stage; behind_ms is a micro-batch through all later stages and back."""
    compute = costs.compute_ms[kind, last, first]
    if costs.waits:
        forward, backward = message_ms(costs, kind, first, last, replicas)
        compute += forward + backward
    num = costs.num_microbatches
    worst = 0.0
    for dealt in (num // replicas, (num + replicas - 1) // replicas):
        held = dealt
        if not costs.holds_all:
            held = min(dealt, ((behind + replicas) * dealt + num - 1) // num)
        rounds = dealt / max(held, 1)
        if costs.is_step_time:
            worst = max(worst, (rounds - 1) * (compute + behind_ms))
        else:
            worst = max(worst, rounds * (compute + behind_ms))
    return worst


@compiled
def total_ms(costs: Costs, rows: IntArray) -> tuple[float, float]:
    """Return (largest load, sum of times) of a plan (first, behind last, kind, replicas of each stage)."""
    most_ms, behind_ms, behind = 0.0, 0.0, 0
    for stage in range(len(rows) - 1, -1, -1):
        first, last, kind, replicas = rows[stage]
        load, time = load_ms(costs, kind, first, last, replicas)
        window = window_ms(costs, kind, first, last, replicas, behind, behind_ms)
        most_ms = max(most_ms, load, window)
        behind_ms += time
        behind += replicas
    return most_ms, behind_ms
