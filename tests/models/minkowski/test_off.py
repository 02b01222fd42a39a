"""Meshes in OFF files as point clouds."""

from pathlib import Path

import pytest
import torch

from stagewright.document import InputError
from stagewright.models.minkowski.off import MeshClouds, points_on, read_off

SQUARE = "OFF\n4 1 0\n0 0 0\n2 0 0  # a corner\n2 2 0\n0 2 0\n4 0 1 2 3\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("head", ["OFF\n4 1 0", "OFF4 1 0", "OFF 4 1 0", "OFF # mesh\n\n4 1 0"])
def test_a_polygon_becomes_triangles_however_its_counts_are_written(
    tmp_path: Path, head: str
) -> None:
    vertices, triangles = read_off(write(tmp_path / "a.off", SQUARE.replace("OFF\n4 1 0", head)))
    assert vertices.tolist() == [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]]
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLY\n", "starts with 'PLY', expected 'OFF'"),
        ("", "starts with 'nothing'"),
        ("OFF\n4 1 0\n0 0 0\n", "is no complete OFF mesh"),
        (SQUARE.replace("4 0 1 2 3", "4 0 1 2"), "is no complete OFF mesh"),
        (SQUARE.replace("4 0 1 2 3", "4 0 1 2 4"), "name vertices outside of 0 to 3"),
        (SQUARE.replace("4 1 0", "4 0 0"), "its 0 triangles"),
        (SQUARE.replace("2 2 0", "2 nan 0"), "a vertex is not finite"),
        (SQUARE.replace("2 2 0", "2 two 0"), "is no complete OFF mesh"),
    ],
)
def test_a_wrong_mesh_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_off(write(tmp_path / "a.off", text))


def test_points_are_uniform_over_the_area() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 1, 5]])
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    points = points_on(vertices, triangles, 8000, torch.Generator().manual_seed(0))
    high = points[:, 2] > 1
    assert high.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(
        points[~high].mean(0), torch.tensor([1 / 3, 1 / 3, 0.0]), atol=0.02, rtol=0
    )


def test_a_folder_of_classes_is_a_dataset(tmp_path: Path) -> None:
    for name, size in (("chair", 2), ("bath", 3)):
        for split, count in (("train", 2), ("test", 1)):
            for i in range(count):
                write(tmp_path / name / split / f"{name}_{i}.off", SQUARE.replace("2", str(size)))
    data = MeshClouds(tmp_path, "train", num_points=64)
    assert data.classes == ["bath", "chair"]
    assert [data[i][1] for i in range(len(data))] == [0, 0, 1, 1]
    points, _ = data[1]
    assert points.shape == (64, 3) and points.abs().max() <= 1
    assert torch.equal(points, MeshClouds(tmp_path, "train", num_points=64)[1][0])
    assert len(MeshClouds(tmp_path, "test")) == 2
    with pytest.raises(InputError, match="has no meshes CLASS/test"):
        MeshClouds(tmp_path / "chair", "test")
