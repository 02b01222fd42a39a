"""A multilayer perceptron for handwritten digits: a plain chain without random layers."""

from torch import nn

from stagewright.models.digits import accuracy, digits, images, mean_cross_entropy

example_input = images
dataset = digits
loss = mean_cross_entropy
metric = accuracy


def build() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def build_with_dropout() -> nn.Module:
    """Return a net with random layers, so that what they draw can be compared between plans."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )
