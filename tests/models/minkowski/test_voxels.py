"""Points to voxels and back, and the sparse models made of them."""

import pytest
import torch

from stagewright.document import InputError
from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.task import load_task

pytestmark = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))
TASKS = ("vgg:small", "resnet", "unet")


def test_each_cell_with_points_becomes_one_voxel() -> None:
    from stagewright.models.minkowski.voxels import Voxelize

    points = torch.tensor([[[-1.0, -1, -1], [-0.9, -0.9, -0.9], [1, 1, 1]], [[0.0, 0, 0]] * 3])
    x = Voxelize(4)(points)
    assert x.C.tolist() == [[0, 0, 0, 0], [0, 3, 3, 3], [1, 2, 2, 2]]
    assert x.F.tolist() == [[1], [1], [1]]


def test_points_get_the_features_of_their_voxels_and_give_them_their_gradients() -> None:
    from stagewright.models.minkowski.voxels import ME, AtPoints, Voxelize, cells_of

    points = torch.rand(3, 50, 3) * 2 - 1
    x = Voxelize(5)(points)
    features = torch.randn(len(x.F), 2, requires_grad=True)
    y = ME.SparseTensor(
        features, coordinate_map_key=x.coordinate_map_key, coordinate_manager=x.coordinate_manager
    )
    found = AtPoints(5)(y, points)
    rows = {tuple(cell): i for i, cell in enumerate(x.C.tolist())}
    wanted = [rows[tuple(cell)] for cell in cells_of(points, 5).tolist()]
    assert torch.equal(found.flatten(0, 1), features[wanted])
    found.sum().backward()
    counts = torch.bincount(torch.tensor(wanted), minlength=len(x.F)).float()
    assert features.grad is not None
    assert torch.equal(features.grad, counts[:, None].expand(-1, 2))


@pytest.mark.parametrize("name", TASKS)
def test_a_sparse_model_trains_on_any_number_of_voxels(name: str) -> None:
    """A sample of a single voxel included."""
    task = load_task(f"stagewright.models.minkowski.{name}")
    torch.manual_seed(0)
    model = task.build()
    points = task.call("example_input", 3)
    points[1] = 0.1
    target = torch.stack([torch.as_tensor(task.call("dataset", "train")[i][1]) for i in range(3)])
    loss = task.call("loss", model(points), target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_judged_by_itself_in_evaluation(name: str) -> None:
    """What another sample of the batch holds, and where it stands, changes nothing."""
    task = load_task(f"stagewright.models.minkowski.{name}")
    model = task.build().eval()
    points = task.call("example_input", 4)
    with torch.no_grad():
        whole = model(points)
        for i in range(4):
            torch.testing.assert_close(model(points[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_the_full_vgg_has_the_parameters_of_sparsepipes() -> None:
    """252.7 MB of float32 in its profile, 40 classes."""
    task = load_task("stagewright.models.minkowski.vgg")
    with torch.device("meta"):
        model = task.build()
    assert sum(p.numel() for p in model.parameters()) * 4 == pytest.approx(252.7e6, rel=1e-3)


def test_a_small_vgg_learns_the_shapes() -> None:
    task = load_task("stagewright.models.minkowski.vgg:small")
    torch.manual_seed(0)
    model, loss = task.build(), task.function("loss")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = task.call("dataset", "train")
    losses = []
    for step in range(16):
        samples = [data[i] for i in range(32 * step, 32 * (step + 1))]
        inputs = torch.stack([points for points, _ in samples])
        optimizer.zero_grad()
        found = loss(model(inputs), torch.tensor([label for _, label in samples]))
        found.backward()
        optimizer.step()
        losses.append(found.item())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_samples_without_points_are_refused() -> None:
    from stagewright.models.minkowski.voxels import Voxelize

    with pytest.raises(
        InputError, match=r"the points are \(2, 0, 3\), expected at least one point"
    ):
        Voxelize(8)(torch.zeros(2, 0, 3))
