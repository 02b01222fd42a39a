"""ResNet50 for ImageNet, with torchvision's state-dict names; for benchmarks, so it brings no data."""

import torch
from torch import Tensor, nn

from stagewright.models.digits import mean_cross_entropy
from stagewright.models.resnet import build_resnet50

loss = mean_cross_entropy


def build() -> nn.Module:
    return build_resnet50()


def example_input(batch_size: int) -> Tensor:
    """Return (batch_size, 3, 224, 224) random images, the same for every call."""
    return torch.rand(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(0))
