"""Writes a predicted timeline in the Trace Event Format, which Perfetto and chrome://tracing show.

Source: Google, "Trace Event Format", complete events (ph X), times in microseconds.
"""

from pathlib import Path
from typing import Any

import msgspec

from stagewright.document import write_atomically
from stagewright.plan import Plan
from stagewright.schedule import Action

from .picture import rank_labels
from .simulate import Event, Timeline


def write_trace(path: Path, plan: Plan, timeline: Timeline) -> None:
    """Write one predicted step: a process per rank, one row for computing, one per peer for messages."""
    content = {"displayTimeUnit": "ms", "traceEvents": trace_events(plan, timeline)}
    write_atomically(path, msgspec.json.encode(content) + b"\n")


def trace_events(plan: Plan, timeline: Timeline) -> list[dict[str, Any]]:
    """Return the events; a message is shown with the rank that sends it."""
    events: list[dict[str, Any]] = []
    labels = rank_labels(plan)
    for rank, own in plan.stages_of_ranks.items():
        types = {replica.device_type for replica in own.values()}
        emulated = ", emulated" if types & set(plan.slowdowns) else ""
        events.append(_name("process_name", rank, 0, f"{labels[rank]}{emulated} (predicted)"))
        events.append(_name("thread_name", rank, 0, "compute"))
    for rank, row in enumerate(timeline.ranks):
        events += [_complete(event, rank, 0) for event in row]
    for event in timeline.messages:
        assert not isinstance(event.what, Action | str)
        row_number = 1 + event.what.receiver
        events.append(_complete(event, event.what.sender, row_number))
    peers = sorted({(e["pid"], e["tid"]) for e in events if e["ph"] == "X" and e["tid"] > 0})
    events += [_name("thread_name", rank, row, f"to rank {row - 1}") for rank, row in peers]
    return events


def _name(kind: str, rank: int, row: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": row, "args": {"name": name}}


def _complete(event: Event, rank: int, row: int) -> dict[str, Any]:
    return {
        "name": str(event.what),
        "ph": "X",
        "pid": rank,
        "tid": row,
        "ts": event.start_ms * 1e3,
        "dur": (event.end_ms - event.start_ms) * 1e3,
    }
