"""Pictures for the larger image models: the handwritten digits, enlarged, in three colours.

They are 64 x 64, so that a step on a processor takes little time; the models are those for 224 x 224.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from stagewright.models.digits import digits

SIZE = 64


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Enlarged digits (3, SIZE, SIZE) in [-1, 1] and their labels, each made when it is asked for."""

    def __init__(self, small: TensorDataset) -> None:
        self._small = small

    def __len__(self) -> int:
        return len(self._small)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self._small[index]
        large = functional.interpolate(image[None], size=(SIZE, SIZE), mode="bilinear")[0]
        return large.expand(3, -1, -1), label


def pictures(split: str) -> Pictures:
    """Return the pictures of the split 'train' or 'test'.

    Raises:
        InputError: scikit-learn is missing, or there is no such split.
    """
    return Pictures(digits(split))


def random_pictures(batch_size: int) -> Tensor:
    """Return (batch_size, 3, SIZE, SIZE) random images, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, 3, SIZE, SIZE, generator=generator) * 2 - 1
