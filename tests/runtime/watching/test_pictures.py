"""Pictures: well-formed, to scale, with everything that they are given."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.runtime.watching.pictures import loss_svg, memory_svg, timeline_svg
from stagewright.runtime.watching.timeline import MeasuredTimeline, TimelineEvent

SVG = "{http://www.w3.org/2000/svg}"
ACTIONS = ("0F1", "12B30", "2I0", "2W0", "reduce", "update")
times = st.floats(0, 1e6, allow_nan=False)


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(ACTIONS), times, times)), min_size=1, max_size=4),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
)
def test_a_timeline_has_one_box_per_event_as_wide_as_it_took(
    rows: list[list[tuple[str, float, float]]], label: str
) -> None:
    ranks = tuple(
        tuple(TimelineEvent(what=what, start_ms=min(a, b), end_ms=max(a, b)) for what, a, b in row)
        for row in rows
    )
    tree = ElementTree.fromstring(timeline_svg(MeasuredTimeline(ranks=ranks), [label] * len(rows)))
    boxes = tree.findall(f"{SVG}g/{SVG}rect")
    events = [event for row in ranks for event in row]
    assert [box.findtext(f"{SVG}title") for box in tree.findall(f"{SVG}g")] == [
        f"{e.what}: {e.start_ms:.3f} to {e.end_ms:.3f} ms" for e in events
    ]
    end = max((event.end_ms for event in events), default=0.0) or 1.0
    for event, box in zip(events, boxes, strict=True):
        wanted = 990 * (event.end_ms - event.start_ms) / end
        assert float(box.attrib["width"]) == pytest.approx(max(wanted, 0.2), abs=0.006)


def test_memory_bars_are_to_scale_and_say_where_nothing_was_measured() -> None:
    tree = ElementTree.fromstring(memory_svg([("rank 0", 100, 50), ("rank 1", 25, None)]))
    widths = [float(bar.attrib["width"]) for bar in tree.findall(f"{SVG}rect")]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.5, 0.25])
    texts = [text.text for text in tree.findall(f"{SVG}text")]
    assert texts.count("not measured") == 1


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=12))
def test_a_loss_curve_has_every_finite_loss_and_breaks_at_the_others(
    losses: list[float | None],
) -> None:
    tree = ElementTree.fromstring(loss_svg(losses, 0))
    curves = [line.attrib["points"].split() for line in tree.findall(f"{SVG}polyline")]
    finite = [loss is not None and math.isfinite(loss) for loss in losses]
    assert sum(map(len, curves)) == sum(finite)
    starts = [good and not before for good, before in zip(finite, [False, *finite], strict=False)]
    assert len(curves) == sum(starts)
