"""The certificate of a plan's lower bound: prices that anybody can check by shortest paths.

For plans whose largest load is within an interval, prices per device, per stage and for the window of units
in flight bound the rest of the objective from below. `stagewright check` recomputes every bound.
"""

from stagewright.document import Record


class PricedLoads(Record):
    """Prices for the plans whose largest load is above one threshold and at most another."""

    above_ms: float
    up_to_ms: float | None
    """None: no limit."""
    per_device: dict[str, float]
    """By device type."""
    per_memory: dict[str, float] = {}
    """For all the memory of a device type, in bounds for every cut."""
    per_stage: float = 0.0
    per_window: float = 0.0
    """Objective throughput: for a micro-batch's time in the first stage's units in flight."""
    per_ms: float = 0.0
    """Objective throughput: for a micro-batch's time."""
    per_money: float = 0.0
    """For the price per hour of the devices, where there is a budget."""


class Certificate(Record):
    """A lower bound for plans at one micro-batch size, with what was planned and the prices that prove it."""

    bound_ms: float
    """No plan has a smaller value."""
    microbatch_size: int
    num_microbatches: int
    schedule: str
    objective: str
    optimizer: str
    overlap: str
    count_memory: bool
    count_update: bool
    straight: bool
    allow_recompute: bool = False
    budget_per_hour: float | None = None
    period_ms: float | None = None
    """Of inference: the most between two micro-batches; None: not limited."""
    max_stages: int | None
    cuts: str = "order"
    """Which cuts of the graph the plans may use: of its own order, of several orders, or every one."""
    is_for_every_cut: bool = False
    """Whether layers take stages one by one, whatever the cuts; else stages are what is between two cuts."""
    mixes_types: bool = False
    """Whether it holds for stages on devices of several types, too, not only for those of one type."""
    is_over_sets: bool = False
    """Whether the bounds of its intervals are over all sets of devices, without prices."""
    is_replica_indexed: bool
    """Whether the shortest path has the number of replicas behind a cut as part of its state."""
    intervals: tuple[PricedLoads, ...]
    """Throughput: one, whose plans do not exist. Step-time: all loads from 0 on."""
