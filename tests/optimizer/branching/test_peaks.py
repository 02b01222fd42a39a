"""What a stage holds beyond what is saved is judged by playing its layers one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.optimizer.branching.cuts import GraphCuts
from stagewright.optimizer.branching.peaks import beyond_kept


@st.composite
def families(draw: st.DrawFn) -> GraphCuts:
    """Some prefixes of up to seven layers in their own order, or those of that and another order."""
    size = draw(st.integers(1, 7))
    orders = [list(range(size))]
    if draw(st.booleans()):
        orders.append(draw(st.permutations(range(size))))
    sizes = sorted({0, size, *draw(st.sets(st.integers(0, size)))})
    inside = None
    if len(orders) > 1:
        rows = {tuple(i in order[:k] for i in range(size)) for order in orders for k in sizes}
        inside = np.array(sorted(rows, key=lambda row: (sum(row), row)))
    return GraphCuts(
        order=np.arange(size),
        sizes=np.array(sizes) if inside is None else inside.sum(axis=1),
        inside=inside,
        spine=np.arange(0),
        is_thin=False,
        is_complete=False,
        description="",
    )


@settings(max_examples=80)
@given(families(), st.data())
def test_a_stage_s_peak_is_that_of_its_layers_run_forward_and_backward(
    cuts: GraphCuts, data: st.DataObject
) -> None:
    count = cuts.num_layers + 1
    amounts = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    kept, working = data.draw(amounts), data.draw(amounts)
    found = beyond_kept(cuts, np.array(kept, float), np.array(working, float))
    for first, last in zip(*np.nonzero(cuts.nested), strict=True):
        layers = [*cuts.held(first, last), *([count - 1] if last == len(cuts) - 1 else [])]
        held = peak = 0
        for layer in layers:
            held += kept[layer]
            peak = max(peak, held + working[layer])
        for layer in reversed(layers):
            peak = max(peak, held + working[layer])
            held -= kept[layer]
        assert found[first, last] == peak - sum(kept[layer] for layer in layers)
