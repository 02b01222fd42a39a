"""The generated point clouds."""

import pytest
import torch

from stagewright.document import InputError
from stagewright.models.minkowski.shapes import (
    NUM_POINTS,
    SHAPES,
    SceneClouds,
    ShapeClouds,
    clouds,
    scenes,
)


@pytest.mark.parametrize("kind", [ShapeClouds, SceneClouds])
def test_a_sample_depends_on_seed_split_and_index_only(
    kind: type[ShapeClouds] | type[SceneClouds],
) -> None:
    data = kind("train")
    points, label = data[7]
    torch.manual_seed(5)
    again, same_label = kind("train")[7]
    assert torch.equal(points, again)
    assert torch.equal(torch.as_tensor(label), torch.as_tensor(same_label))
    others = [data[8][0], kind("test")[7][0], kind("train", seed=1)[7][0]]
    assert all(not torch.equal(points, other) for other in others)


@pytest.mark.parametrize("kind", [ShapeClouds, SceneClouds])
def test_points_are_finite_in_the_unit_cube_and_as_many_in_every_sample(
    kind: type[ShapeClouds] | type[SceneClouds],
) -> None:
    data = kind("test")
    for index in range(40):
        points, label = data[index]
        assert points.shape == (NUM_POINTS, 3) and points.dtype == torch.float32
        assert points.isfinite().all() and points.abs().max() <= 1
        assert torch.as_tensor(label).max() < len(SHAPES)


def test_every_shape_comes_as_often() -> None:
    data = ShapeClouds("test")
    assert [data[i][1] for i in range(2 * len(SHAPES))] == 2 * list(range(len(SHAPES)))


def test_a_scene_has_a_label_for_each_point_and_its_objects_lie_apart() -> None:
    points, labels = SceneClouds("train")[3]
    assert labels.shape == (NUM_POINTS,)
    firsts = points[:171].mean(0), points[-170:].mean(0)
    assert (firsts[0] - firsts[1]).norm() > 0.5


def test_the_example_inputs_are_the_first_samples() -> None:
    assert torch.equal(clouds(3)[2], ShapeClouds("train")[2][0])
    assert torch.equal(scenes(3)[2], SceneClouds("train")[2][0])


def test_an_unknown_split_is_refused_and_the_end_is_the_end() -> None:
    with pytest.raises(InputError, match="expected 'train' or 'test'"):
        ShapeClouds("validation")
    with pytest.raises(IndexError):
        ShapeClouds("test")[400]
