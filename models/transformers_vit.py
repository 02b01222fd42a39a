"""A vision transformer of the library transformers, with random weights, on enlarged digits."""

from torch import nn

from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import SIZE, pictures, random_pictures
from stagewright.models.transformers_text import SIZES, Logits, library

example_input = random_pictures
dataset = pictures
loss = mean_cross_entropy
metric = accuracy


def build() -> nn.Module:
    config = library().ViTConfig(image_size=SIZE, patch_size=SIZE // 4, num_labels=10, **SIZES)
    return Logits(library().ViTForImageClassification(config)).train()
