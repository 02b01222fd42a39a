"""ResNet50 for ImageNet, with torchvision's state-dict names; its data are enlarged digits."""

from torch import nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import full_pictures, random_full_pictures
from stagewright.models.resnet import build_resnet50

example_input = random_full_pictures
dataset = full_pictures
loss = mean_cross_entropy
metric = accuracy


def build() -> nn.Module:
    return build_resnet50()
