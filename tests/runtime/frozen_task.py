"""Eight layers: a frozen start, a trained part, a part without parameters, a partly frozen head."""

from torch import nn

from stagewright.models.digits import digits, images, mean_cross_entropy

example_input = images
dataset = digits
loss = mean_cross_entropy


def build() -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Linear(32, 32),
        nn.LayerNorm(32),
        nn.ReLU(),
        nn.Tanh(),
        nn.Linear(32, 16),
        nn.Linear(16, 10),
    )
    for frozen in (model[1], model[6]):
        frozen.requires_grad_(False)
    return model
