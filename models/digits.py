"""The data of the digits tasks: scikit-learn's handwritten digits, split once and for all."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from stagewright.document import InputError

NUM_TEST = 360
"""Of 1797 images; the rest is for training."""
SPLIT_SEED = 0


def digits(split: str) -> TensorDataset:
    """Return the images (1, 8, 8) in [-1, 1] and the labels of the split 'train' or 'test'.

    Raises:
        InputError: scikit-learn is missing, or there is no such split.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "the digits are in scikit-learn, which is not installed; pip install scikit-learn"
        ) from None
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}, expected 'train' or 'test'")
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = order[:NUM_TEST] if split == "test" else order[NUM_TEST:]
    return TensorDataset(images[chosen], torch.from_numpy(labels)[chosen])


def images(batch_size: int) -> Tensor:
    """Return (batch_size, 1, 8, 8) random images, the same for every call."""
    return torch.rand(batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def mean_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of class scores (batch, classes) for labels (batch)."""
    return functional.cross_entropy(output, target)


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the share of samples whose highest score is at their label."""
    return (output.argmax(dim=1) == target).float().mean().item()
