"""Generated point clouds: ten parametric shapes, whole to classify, and scenes of three to label by point.

Every sample is a pure function of (seed, split, index): its shape, its proportions, a turn about the vertical
axis and a small tilt, noise, and a partial view that loses what lies behind a plane. Points lie in
[-1, 1]^3, z upwards. The number of points is the same for every sample, the number of voxels is not.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from stagewright.document import InputError

NUM_POINTS = 512
NUM_SAMPLES = {"train": 2000, "test": 400}
NOISE = 0.01
"""Standard deviation of each coordinate, where a shape spans about 1.6."""
LARGEST_TILT = math.radians(15)
LARGEST_LOSS = 0.2
"""Share of the points that a partial view may lose."""
OBJECTS_IN_SCENE = 3


def _uniform(generator: Generator, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _number(generator: Generator, low: float, high: float) -> float:
    return float(_uniform(generator, 1, low, high))


def _around(radius: Tensor, angle: Tensor, z: Tensor) -> Tensor:
    """Return the points (n, 3) at a distance from the vertical axis, at an angle and a height."""
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


def _angles(generator: Generator, count: int) -> Tensor:
    return _uniform(generator, count, 0, 2 * math.pi)


def sphere(count: int, generator: Generator) -> Tensor:
    z = _uniform(generator, count, -1, 1)
    points = _around((1 - z**2).sqrt(), _angles(generator, count), z)
    return points * _number(generator, 0.6, 0.8)


def box(count: int, generator: Generator) -> Tensor:
    points = torch.rand(count, 3, generator=generator) * 2 - 1
    side = torch.randint(6, (count,), generator=generator)
    points[torch.arange(count), side // 2] = (side % 2 * 2 - 1).float()
    return points * _uniform(generator, 3, 0.4, 0.65)


def cylinder(count: int, generator: Generator) -> Tensor:
    part = _uniform(generator, count)
    z = torch.where(part < 0.7, _uniform(generator, count, -1, 1), torch.sign(part - 0.85))
    radius = torch.where(part < 0.7, 1.0, _uniform(generator, count).sqrt())
    points = _around(radius * _number(generator, 0.3, 0.5), _angles(generator, count), z)
    points[:, 2] *= _number(generator, 0.5, 0.7)
    return points


def cone(count: int, generator: Generator) -> Tensor:
    share = _uniform(generator, count).sqrt()
    is_base = _uniform(generator, count) < 0.3
    z = torch.where(is_base, torch.tensor(-1.0), 1 - 2 * share)
    points = _around(share * _number(generator, 0.5, 0.7), _angles(generator, count), z)
    points[:, 2] *= _number(generator, 0.5, 0.7)
    return points


def torus(count: int, generator: Generator) -> Tensor:
    tube = _angles(generator, count)
    thin, wide = _number(generator, 0.12, 0.22), _number(generator, 0.5, 0.6)
    return _around(wide + thin * tube.cos(), _angles(generator, count), thin * tube.sin())


def pyramid(count: int, generator: Generator) -> Tensor:
    points = box(count, generator)
    z = 1 - 2 * _uniform(generator, count).sqrt()
    is_base = _uniform(generator, count) < 0.3
    side = torch.randint(4, (count,), generator=generator)
    edge = _uniform(generator, count, -1, 1)
    sign = (side % 2 * 2 - 1).float()
    around = torch.where(
        (side < 2)[:, None], torch.stack([sign, edge], 1), torch.stack([edge, sign], 1)
    )
    points[:, :2] = torch.where(
        is_base[:, None],
        torch.rand(count, 2, generator=generator) * 2 - 1,
        around * ((1 - z) / 2)[:, None],
    )
    points[:, 2] = torch.where(is_base, torch.tensor(-1.0), z)
    return points * _number(generator, 0.5, 0.65)


def helix(count: int, generator: Generator) -> Tensor:
    turn, tube = _uniform(generator, count, -1, 1), _angles(generator, count)
    turns, thin = _number(generator, 1.5, 2.5), _number(generator, 0.05, 0.09)
    radius = _number(generator, 0.4, 0.55) + thin * tube.cos()
    return _around(radius, turn * turns * math.pi, turn * 0.65 + thin * tube.sin())


def moebius_strip(count: int, generator: Generator) -> Tensor:
    angle = _angles(generator, count)
    across = _uniform(generator, count, -1, 1) * _number(generator, 0.2, 0.3)
    radius = 0.55 + across * (angle / 2).cos()
    return _around(radius, angle, across * (angle / 2).sin())


def crossed_rods(count: int, generator: Generator) -> Tensor:
    thin, length = _number(generator, 0.06, 0.12), _number(generator, 0.6, 0.75)
    angle = _angles(generator, count)
    along = _uniform(generator, count, -length, length)
    points = torch.stack([along, thin * angle.cos(), thin * angle.sin()], dim=1)
    axis = torch.randint(3, (count,), generator=generator)
    places = (torch.arange(3)[None, :] + axis[:, None]) % 3
    return points.gather(1, places)


def stairs(count: int, generator: Generator) -> Tensor:
    num_steps, depth = 3, _number(generator, 0.35, 0.55)
    step = torch.randint(num_steps, (count,), generator=generator).float()
    inside = _uniform(generator, count)
    is_tread = _uniform(generator, count) < 0.5
    x = (step + torch.where(is_tread, inside, 0.0)) / num_steps * 1.3 - 0.65
    z = (step + torch.where(is_tread, 1.0, inside)) / num_steps * 1.3 - 0.65
    return torch.stack([x, _uniform(generator, count, -depth, depth), z], dim=1)


SHAPES: tuple[Callable[[int, Generator], Tensor], ...] = (
    sphere, box, cylinder, cone, torus, pyramid, helix, moebius_strip, crossed_rods, stairs,
)  # fmt: skip
"""A shape's class is its place here. Each returns (count, 3) points of its surface."""


class _Generated(Dataset[tuple[Tensor, Any]]):
    """Samples made when they are asked for, each from a generator of its own."""

    def __init__(self, split: str, num_points: int, seed: int) -> None:
        if split not in NUM_SAMPLES:
            raise InputError(f"split is {split!r}, expected 'train' or 'test'")
        self._split, self._num_points, self._seed = split, num_points, seed

    def __len__(self) -> int:
        return NUM_SAMPLES[self._split]

    def _generator(self, index: int) -> Generator:
        if not 0 <= index < len(self):
            raise IndexError(index)
        # A hash, as torch's generator takes the last 32 bits of a seed only.
        key = hashlib.blake2b(repr((self._seed, self._split, index)).encode(), digest_size=4)
        return Generator().manual_seed(int.from_bytes(key.digest(), "little"))


class ShapeClouds(_Generated):
    """One shape a sample: points (num_points, 3) and its class."""

    def __init__(self, split: str, num_points: int = NUM_POINTS, seed: int = 0) -> None:
        super().__init__(split, num_points, seed)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = self._generator(index)
        label = index % len(SHAPES)
        return _seen(label, self._num_points, generator).clamp(-1, 1), label


class SceneClouds(_Generated):
    """Three shapes a sample, side by side: points (num_points, 3) and the class of each (num_points)."""

    def __init__(self, split: str, num_points: int = NUM_POINTS, seed: int = 0) -> None:
        super().__init__(split, num_points, seed)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = self._generator(index)
        counts = [self._num_points // OBJECTS_IN_SCENE] * OBJECTS_IN_SCENE
        counts[0] += self._num_points - sum(counts)
        start = _number(generator, 0, 2 * math.pi)
        clouds, labels = [], []
        for i, count in enumerate(counts):
            label = int(torch.randint(len(SHAPES), (1,), generator=generator))
            angle = start + 2 * math.pi * i / OBJECTS_IN_SCENE
            place = torch.tensor([math.cos(angle), math.sin(angle), 0.0]) * 0.58
            clouds.append(_seen(label, count, generator) * 0.5 + place)
            labels.append(torch.full((count,), label))
        return torch.cat(clouds).clamp(-1, 1), torch.cat(labels)


def clouds(batch_size: int, num_points: int = NUM_POINTS) -> Tensor:
    """Return the points (batch_size, num_points, 3) of the first shapes, the same for every call."""
    dataset = ShapeClouds("train", num_points)
    return torch.stack([dataset[i % len(dataset)][0] for i in range(batch_size)])


def scenes(batch_size: int, num_points: int = NUM_POINTS) -> Tensor:
    """Return the points (batch_size, num_points, 3) of the first scenes, the same for every call."""
    dataset = SceneClouds("train", num_points)
    return torch.stack([dataset[i % len(dataset)][0] for i in range(batch_size)])


def _seen(label: int, count: int, generator: Generator) -> Tensor:
    """Return count points of a shape as a scanner may see it: turned, tilted, in part, with noise."""
    made = math.ceil(count / (1 - LARGEST_LOSS))
    points = SHAPES[label](made, generator) @ _turn(generator).T
    towards = torch.randn(3, generator=generator)
    depth = points @ (towards / towards.norm())
    lost = int(_number(generator, 0, 1) * (made - count))
    kept = depth.argsort()[lost:]
    order = torch.randperm(len(kept), generator=generator)[:count]
    return points[kept[order]] + torch.randn(count, 3, generator=generator) * NOISE


def _turn(generator: Generator) -> Tensor:
    """Return a rotation (3, 3): any angle about the vertical axis, then a tilt about the first."""
    turn, tilt = _number(generator, 0, 2 * math.pi), _number(generator, -LARGEST_TILT, LARGEST_TILT)
    c, s, d, t = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
    about_z = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    about_x = torch.tensor([[1.0, 0.0, 0.0], [0.0, d, -t], [0.0, t, d]])
    return about_x @ about_z
