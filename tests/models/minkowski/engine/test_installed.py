"""Which MinkowskiEngine counts as ours, and what the repaired one must do (each line of engine.patch)."""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stagewright.document import InputError
from stagewright.models.minkowski.engine import installed
from stagewright.models.minkowski.engine.installed import minkowski_engine, why_unusable

SIZE = 6
NUM_ITEMS = 8
needs_engine = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))


def cloud(points_per_item: int, seed: int = 0, num_items: int = NUM_ITEMS) -> Tensor:
    """Return distinct voxels of some items in a mixed order: (rows, 4) int32."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, SIZE, (num_items * points_per_item, 3), generator=generator)
    items = torch.arange(num_items).repeat_interleave(points_per_item)[:, None]
    rows: Tensor = torch.unique(torch.cat([items, cells], dim=1), dim=0).int()
    return rows[torch.randperm(len(rows), generator=generator)]


def sparse(coordinates: Tensor, channels: int = 4, seed: int = 0) -> Any:
    """Return a float64 sparse tensor with random features, made by key."""
    engine = minkowski_engine()
    manager = engine.CoordinateManager(D=3)
    key, _ = manager.insert_and_map(coordinates, [1, 1, 1], "")
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(coordinates), channels, generator=generator, dtype=torch.float64)
    return engine.SparseTensor(
        features.requires_grad_(), coordinate_map_key=key, coordinate_manager=manager
    )


def dense(x: Any, features: Tensor) -> Tensor:
    """Return features at the voxels of x as (items, channels, SIZE, SIZE, SIZE), zero elsewhere."""
    places = x.C.long()
    whole = features.new_zeros(NUM_ITEMS, SIZE, SIZE, SIZE, features.shape[1])
    return whole.index_put(tuple(places.T), features).permute(0, 4, 1, 2, 3)


@needs_engine
@pytest.mark.parametrize("kind", ["Sum", "Avg", "Max"])
@pytest.mark.parametrize("points_per_item", [30, 1])
def test_global_pooling_returns_one_row_for_each_item_in_their_order(
    kind: str, points_per_item: int
) -> None:
    x = sparse(cloud(points_per_item))
    y = getattr(minkowski_engine(), f"MinkowskiGlobal{kind}Pooling")()(x)
    reductions: dict[str, Callable[[Tensor], Tensor]] = {
        "Sum": lambda rows: rows.sum(0),
        "Avg": lambda rows: rows.mean(0),
        "Max": lambda rows: rows.max(0).values,
    }
    reduce = reductions[kind]
    leaf = x.F.detach().clone().requires_grad_()
    wanted = torch.stack([reduce(leaf[x.C[:, 0] == item]) for item in range(NUM_ITEMS)])
    weights = torch.arange(wanted.numel(), dtype=torch.float64).view_as(wanted)
    torch.autograd.backward([(y.F * weights).sum(), (wanted * weights).sum()])
    assert y.C[:, 0].tolist() == list(range(NUM_ITEMS))
    torch.testing.assert_close(y.F, wanted)
    torch.testing.assert_close(x.F.grad, leaf.grad)


@needs_engine
def test_a_second_union_in_one_manager_is_as_right_as_the_first() -> None:
    engine = minkowski_engine()
    first = sparse(cloud(20, seed=1))
    manager = first.coordinate_manager
    others = []
    for seed in (2, 3):
        rows = cloud(20, seed=seed)
        key, _ = manager.insert_and_map(rows, [1, 1, 1], f"other{seed}")
        features = torch.randn(len(rows), 4, dtype=torch.float64)
        others.append(
            engine.SparseTensor(features, coordinate_map_key=key, coordinate_manager=manager)
        )
    for other in others:
        union = engine.MinkowskiUnion()(first, other)
        wanted = dense(first, first.F) + dense(other, other.F)
        torch.testing.assert_close(dense(union, union.F), wanted)


@needs_engine
@pytest.mark.parametrize("is_cross", [False, True])
def test_a_convolution_equals_the_dense_one_on_a_cube_and_on_a_cross(is_cross: bool) -> None:
    engine = minkowski_engine()
    region = engine.RegionType.HYPER_CROSS if is_cross else engine.RegionType.HYPER_CUBE
    generator = engine.KernelGenerator(kernel_size=3, region_type=region, dimension=3)
    layer = engine.MinkowskiConvolution(4, 5, kernel_generator=generator, dimension=3).double()
    if is_cross:
        offsets = [(0, 0, 0)] + [
            tuple(step if a == axis else 0 for a in range(3))
            for axis, step in itertools.product(range(3), (-1, 1))
        ]
    else:
        offsets = [(x, y, z) for z, y, x in itertools.product((-1, 0, 1), repeat=3)]
    kernel = torch.zeros(5, 4, 3, 3, 3, dtype=torch.float64)
    for (x, y, z), weights in zip(offsets, layer.kernel.detach(), strict=True):
        kernel[:, :, x + 1, y + 1, z + 1] = weights.T
    given = sparse(cloud(40))
    found = layer(given)
    whole = functional.conv3d(dense(given, given.F), kernel, padding=1)
    wanted = whole.permute(0, 2, 3, 4, 1)[tuple(found.C.long().T)]
    torch.testing.assert_close(found.F, wanted)


@needs_engine
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("MinkowskiConvolution", {"in_channels": 4, "out_channels": 4, "kernel_size": 3}),
        ("MinkowskiChannelwiseConvolution", {"in_channels": 4, "kernel_size": 3}),
        ("MinkowskiMaxPooling", {"kernel_size": 2, "stride": 2}),
    ],
)
def test_modules_can_be_copied_and_pickled(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(minkowski_engine(), kind)(**options, dimension=3).double()
    x = sparse(cloud(10))
    wanted = layer(x).F
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert torch.equal(twin(x).F, wanted)


@needs_engine
def test_autograd_notices_weights_that_change_between_forward_and_backward() -> None:
    layer = minkowski_engine().MinkowskiConvolution(4, 4, kernel_size=3, dimension=3).double()
    y = layer(sparse(cloud(10))).F
    with torch.no_grad():
        layer.kernel.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_engine
def test_what_autograd_keeps_is_seen_by_hooks() -> None:
    layer = minkowski_engine().MinkowskiConvolution(4, 4, kernel_size=3, dimension=3).double()
    x = sparse(cloud(10))
    seen: list[int] = []

    def see(tensor: Tensor) -> Tensor:
        seen.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        layer(x)
    assert {x.F.data_ptr(), layer.kernel.data_ptr()} <= set(seen)


@needs_engine
def test_rows_made_from_equal_rows_are_equal_whatever_else_the_manager_holds() -> None:
    """What a stage makes of a received map is bitwise what one process makes."""
    engine = minkowski_engine()
    torch.manual_seed(0)
    layers = [
        engine.MinkowskiConvolution(4, 4, kernel_size=2, stride=2, dimension=3).double(),
        engine.MinkowskiConvolution(4, 4, kernel_size=3, dimension=3).double(),
        engine.MinkowskiMaxPooling(kernel_size=2, stride=2, dimension=3),
        engine.MinkowskiGlobalAvgPooling(),
    ]
    x = sparse(cloud(60))
    here = [x]
    for layer in layers:
        here.append(layer(here[-1]))
    for cut in range(1, len(layers)):
        sent = here[cut]
        manager = engine.CoordinateManager(D=3)
        manager.insert_and_map(cloud(3, seed=9), [16, 16, 16], "unrelated")
        stride, name = sent.coordinate_map_key.get_key()
        key, (rows, _) = manager.insert_and_map(sent.C, stride, name)
        assert rows.tolist() == list(range(len(sent.C)))
        there = engine.SparseTensor(
            sent.F.detach(), coordinate_map_key=key, coordinate_manager=manager
        )
        for layer, wanted in zip(layers[cut:], here[cut + 1 :], strict=True):
            there = layer(there)
            assert torch.equal(there.C, wanted.C)
            assert torch.equal(there.F, wanted.F)


@needs_engine
def test_an_empty_sparse_tensor_goes_through_a_convolution() -> None:
    x = sparse(torch.zeros(0, 4, dtype=torch.int32))
    layer = minkowski_engine().MinkowskiConvolution(4, 5, kernel_size=3, dimension=3).double()
    assert layer(x).F.shape == (0, 5)


@needs_engine
def test_a_coordinate_manager_leaves_the_number_of_threads_as_it_is() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        minkowski_engine().CoordinateManager(D=3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_an_engine_without_the_repairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "found_version", lambda: "0.5.4")
    with pytest.raises(InputError, match=r"0\.5\.4 is installed, expected .*make minkowski"):
        minkowski_engine()


def test_a_missing_engine_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installed, "found_version", lambda: None)
    with pytest.raises(InputError, match="is not installed; run `make minkowski`"):
        minkowski_engine()
