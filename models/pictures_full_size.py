"""Models of pictures at the size they are made for, 224 x 224; VGG16 and ResNet50 are tasks of their own."""

from torch import nn

from stagewright.models import alexnet, densenet, inception
from stagewright.models.digits import accuracy, mean_cross_entropy
from stagewright.models.pictures import full_pictures, random_full_pictures
from stagewright.models.transformers_text import Logits, library

example_input = random_full_pictures
dataset = full_pictures
loss = mean_cross_entropy
metric = accuracy
build_alexnet = alexnet.build
build_densenet121 = densenet.build
build_inception = inception.build


def build_vit_base() -> nn.Module:
    """Return the library transformers' ViT-Base, pictures in parts of 16 x 16, for 1000 classes."""
    config = library().ViTConfig(num_labels=1000)
    return Logits(library().ViTForImageClassification(config)).train()


build = build_vit_base
