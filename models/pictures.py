"""Pictures for the larger image models: the handwritten digits, enlarged, in three colours.

They are 64 x 64, so that a step on a processor takes little time, or as large as the models expect.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from stagewright.models.digits import digits

SIZE = 64
FULL_SIZE = 224
"""Of ImageNet's pictures."""


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Enlarged digits (3, size, size) in [-1, 1] and their labels, each made when it is asked for."""

    def __init__(self, small: TensorDataset, size: int) -> None:
        self._small = small
        self._size = (size, size)

    def __len__(self) -> int:
        return len(self._small)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self._small[index]
        large = functional.interpolate(image[None], size=self._size, mode="bilinear")[0]
        return large.expand(3, -1, -1), label


def pictures(split: str) -> Pictures:
    """Return the pictures of the split 'train' or 'test'.

    Raises:
        InputError: scikit-learn is missing, or there is no such split.
    """
    return Pictures(digits(split), SIZE)


def full_pictures(split: str) -> Pictures:
    """Return the same at FULL_SIZE."""
    return Pictures(digits(split), FULL_SIZE)


def random_pictures(batch_size: int, size: int = SIZE) -> Tensor:
    """Return (batch_size, 3, size, size) random images, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, 3, size, size, generator=generator) * 2 - 1


def random_full_pictures(batch_size: int) -> Tensor:
    """Return the same at FULL_SIZE."""
    return random_pictures(batch_size, FULL_SIZE)
