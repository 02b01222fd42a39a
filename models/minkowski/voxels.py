"""Between points and sparse tensors: the first and the last layer of the sparse models.

A task's data stays dense, (batch, points, 3) and one label per shape or point, so any sampler can batch it
and every sample weighs the same however many voxels it fills.
"""

from typing import Any

import torch
from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.models.minkowski.engine.installed import minkowski_engine

ME = minkowski_engine()

DIMENSION = 3


class Voxelize(nn.Module):
    """Points (batch, points, 3) in [-1, 1]^3 become a sparse tensor: feature 1 in each cell with points.

    The rows are in the order of their first points. A sample has at least one point, so at least one voxel.
    """

    stagewright_layer = True

    def __init__(self, num_cells: int) -> None:
        """num_cells: along each axis."""
        super().__init__()
        self.num_cells = num_cells

    def forward(self, points: Tensor) -> Any:
        if not points.shape[1]:
            raise InputError(
                f"the points are {tuple(points.shape)}, expected at least one point in each sample; "
                "leave empty samples out of the dataset"
            )
        manager = ME.CoordinateManager(D=DIMENSION)
        cells = cells_of(points, self.num_cells)
        key, (unique, _) = manager.insert_and_map(cells, [1] * DIMENSION, "")
        features = points.new_ones(len(unique), 1)
        return ME.SparseTensor(features, coordinate_map_key=key, coordinate_manager=manager)

    def extra_repr(self) -> str:
        return f"num_cells={self.num_cells}"


class AtPoints(nn.Module):
    """A sparse tensor and the points it was made from become features by point (batch, points, channels)."""

    stagewright_layer = True

    def __init__(self, num_cells: int) -> None:
        """num_cells: as of the Voxelize that made the voxels."""
        super().__init__()
        self.num_cells = num_cells

    def forward(self, sparse: Any, points: Tensor) -> Tensor:
        batch, count = points.shape[:2]
        voxels, order = _numbers(sparse.C, self.num_cells).sort()
        wanted = _numbers(cells_of(points, self.num_cells), self.num_cells)
        rows = order[torch.searchsorted(voxels, wanted)]
        features: Tensor = sparse.F.index_select(0, rows).view(batch, count, -1)
        return features

    def extra_repr(self) -> str:
        return f"num_cells={self.num_cells}"


def cells_of(points: Tensor, num_cells: int) -> Tensor:
    """Return the cells (batch * points, 1 + 3) of points (batch, points, 3): sample, then x, y, z; int32."""
    cells = ((points.detach() + 1) * (num_cells / 2)).floor().clamp(0, num_cells - 1).int()
    samples = torch.arange(len(points), dtype=torch.int32, device=points.device)
    column = samples[:, None, None].expand(-1, points.shape[1], 1)
    return torch.cat([column, cells], dim=2).flatten(0, 1).contiguous()


def _numbers(cells: Tensor, num_cells: int) -> Tensor:
    """Return one number for each cell (n, 1 + 3), another for every cell of every sample."""
    weights = torch.tensor(
        [num_cells**3, num_cells**2, num_cells, 1], dtype=torch.int64, device=cells.device
    )
    numbers: Tensor = (cells.long() * weights).sum(dim=1)
    return numbers
