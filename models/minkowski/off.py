"""ModelNet's folders of OFF meshes as point clouds: FOLDER/CLASS/train/*.off and FOLDER/CLASS/test/*.off.

A task of one's own then needs these lines:

    from stagewright.models.minkowski.off import MeshClouds
    from stagewright.models.minkowski.vgg import build, example_input, loss, metric

    def dataset(split):
        return MeshClouds("ModelNet40", split)

Source: Wu et al., "3D ShapeNets", CVPR 2015.
"""

import hashlib
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from stagewright.document import InputError, demand_size, read_text
from stagewright.models.minkowski.shapes import NUM_POINTS

MOST_BYTES = 256 * 2**20
"""Of one mesh that is read; ModelNet40's largest has 40 MiB."""


class MeshClouds(Dataset[tuple[Tensor, int]]):
    """Points on the surfaces of meshes (num_points, 3) in [-1, 1]^3, and the place of their class by name.

    A sample is a pure function of the mesh and (seed, split, index).
    """

    def __init__(
        self, folder: str | Path, split: str, num_points: int = NUM_POINTS, seed: int = 0
    ) -> None:
        """Raises InputError if the folder holds no class with meshes of the split."""
        if split not in ("train", "test"):
            raise InputError(f"split is {split!r}, expected 'train' or 'test'")
        self._split, self._num_points, self._seed = split, num_points, seed
        root = Path(folder)
        found = sorted(root.glob(f"*/{split}/*.off"))
        self.classes = sorted({path.parent.parent.name for path in root.glob("*/*/*.off")})
        self._meshes = [(path, self.classes.index(path.parent.parent.name)) for path in found]
        if not self._meshes:
            raise InputError(
                f"{root}: has no meshes CLASS/{split}/*.off, expected ModelNet's folders; name its folder"
            )

    def __len__(self) -> int:
        return len(self._meshes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._meshes[index]
        vertices, triangles = read_off(path)
        key = hashlib.blake2b(repr((self._seed, self._split, index)).encode(), digest_size=4)
        generator = Generator().manual_seed(int.from_bytes(key.digest(), "little"))
        points = points_on(vertices, triangles, self._num_points, generator)
        low, high = vertices.min(dim=0).values, vertices.max(dim=0).values
        half = ((high - low).max() / 2).clamp(min=1e-12)
        return ((points - (low + high) / 2) / half).clamp(-1, 1), label


def read_off(path: Path) -> tuple[Tensor, Tensor]:
    """Return the vertices (v, 3) float32 and the triangles (t, 3) of an OFF file; polygons become fans.

    In some of ModelNet's files the counts follow "OFF" without a space.

    Raises:
        InputError: the file is no OFF file, is cut short, or a face names no vertex.
    """
    demand_size(path, MOST_BYTES)
    lines = [line.partition("#")[0] for line in read_text(path).splitlines()]
    words = " ".join(lines).split()
    if not words or not words[0].startswith("OFF"):
        found = words[0][:20] if words else "nothing"
        raise InputError(f"{path}: starts with {found!r}, expected 'OFF'; name an OFF mesh")
    words[0] = words[0].removeprefix("OFF")
    numbers = words if words[0] else words[1:]
    try:
        num_vertices, num_faces = int(numbers[0]), int(numbers[1])
        end = 3 + 3 * num_vertices
        vertices = torch.tensor([float(word) for word in numbers[3:end]]).view(num_vertices, 3)
        triangles: list[tuple[int, int, int]] = []
        for _ in range(num_faces):
            count = int(numbers[end])
            corners = [int(word) for word in numbers[end + 1 : end + 1 + count]]
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, count - 1)]
            end += 1 + count
        faces = torch.tensor(triangles, dtype=torch.int64).view(-1, 3)
    except (ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: is no complete OFF mesh: {error}; fetch it again") from None
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(
            f"{path}: its {len(faces)} triangles name vertices outside of 0 to {len(vertices) - 1}; "
            "expected at least one triangle of its own vertices"
        )
    if not vertices.isfinite().all():
        raise InputError(f"{path}: a vertex is not finite; fetch it again")
    return vertices, faces


def points_on(vertices: Tensor, triangles: Tensor, count: int, generator: Generator) -> Tensor:
    """Return count points (count, 3), uniform over the area of a mesh; of its corners if it has no area."""
    corners = vertices[triangles]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = torch.linalg.cross(first, second).norm(dim=1).double()
    weights = areas if areas.sum() > 0 else torch.ones_like(areas)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * weights.sum()
    chosen = torch.searchsorted(weights.cumsum(0), places).clamp(max=len(triangles) - 1)
    u, v = torch.rand(2, count, 1, generator=generator)
    outside = u + v > 1
    u, v = torch.where(outside, 1 - u, u), torch.where(outside, 1 - v, v)
    points: Tensor = corners[chosen, 0] + u * first[chosen] + v * second[chosen]
    return points
