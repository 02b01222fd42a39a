"""A user's own training script: started by torchrun, on tensors that it makes itself.

torchrun --nproc-per-node 2 library_script.py STAGES TASK OUTPUT
"""

import sys
from pathlib import Path

import torch

from stagewright.runtime.library import start, step
from stagewright.runtime.ranks.world import leave_world

session = start(sys.argv[1], sys.argv[2], device="cpu", optimizer="adamw", learning_rate=0.01)
generator = torch.Generator().manual_seed(1)
losses = []
for _ in range(3):
    images = torch.randn(11, 1, 8, 8, generator=generator)
    digits = torch.randint(10, (11,), generator=generator)
    losses.append(step(session, images, digits))
Path(f"{sys.argv[3]}.{session.world.rank}").write_text(" ".join(map(repr, losses)))
leave_world()
