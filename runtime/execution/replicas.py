"""Replicas: every parameter's gradient is summed over all ranks that hold it.

The micro-batches' losses are weighted by their samples on the last stage, so the sum (not the mean) over the
replicas of a stage is the gradient of the whole batch, whatever their number and shares. A parameter that
stands in several stages (tied) is summed over the ranks of all of them, which keeps its copies equal.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from stagewright.runtime.ranks.faults import waiting_for
from stagewright.runtime.ranks.world import World

from .gradient_sums import GradientSums


def parameters_of(modules: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of a rank's stages by original name, tied ones under each of their names."""
    return {
        name: parameter
        for module in modules
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def buffers_of(modules: Iterable[nn.Module]) -> dict[str, torch.Tensor]:
    """Return the buffers of a rank's stages by original name, those outside the state dict too."""
    return {
        name: buffer
        for module in modules
        for name, buffer in module.named_buffers(remove_duplicate=False)
    }


class Reduction:
    """The groups of ranks that share parameters or buffers, and the sums over them."""

    def __init__(
        self,
        stages: Mapping[int, nn.Module],
        tied: Iterable[tuple[str, ...]],
        world: World,
    ) -> None:
        """Agree on who holds what of this rank's stages; every rank calls this at the same time."""
        canonical = {name: group[0] for group in tied for name in group}
        modules = list(stages.values())
        self._device = world.device
        self.parameters: dict[str, nn.Parameter] = {}
        for name, parameter in parameters_of(modules).items():
            if parameter.requires_grad:
                self.parameters.setdefault(canonical.get(name, name), parameter)
        self._buffers = buffers_of(modules)
        self.holders = holders = _holders([*self.parameters], world)
        """For each trained parameter on any rank, the ranks that hold it."""
        self.sums = GradientSums(
            [(names, group, _peers_of(group)) for names, group in _make_groups(holders, world)],
            self.parameters,
            {stage: _trained(module) for stage, module in stages.items()},
        )
        self._buffer_groups = _make_groups(_holders([*self._buffers], world), world)
        self.agree_on_buffers()
        self.owned = {name for name in self.parameters if holders[name][0] == world.rank}
        """The trained parameters whose first holder is this rank; over all ranks, each once."""

    def sum_gradients(self) -> None:
        """Sum every shared parameter's gradient over the ranks that hold it (`GradientSums.finish`)."""
        self.sums.finish()

    def average_buffers(self, units: int) -> None:
        """Make the buffers of a stage's replicas equal: the rule for BatchNorm's running statistics.

        Each replica has changed its statistics with its own micro-batches only. A floating-point buffer that
        changed on any of them becomes the mean over the replicas, weighted by the micro-batches since the
        last call (the plain mean where there were none); an integer one (num_batches_tracked) gets the sum of
        all changes. With one replica nothing changes, so the statistics are one process's.

        Args:
            units: micro-batches that this rank has run forward since the last call.
        """
        for names, group in self._buffer_groups:
            total = torch.tensor(float(units), dtype=torch.float64, device=self._device)
            changed = torch.tensor(
                [not torch.equal(self._buffers[name], self._agreed[name]) for name in names],
                dtype=torch.float32,
                device=self._device,
            )
            with waiting_for(f"the averaging of buffers with {_peers_of(group)}"):
                dist.all_reduce(total, group=group)
                dist.all_reduce(changed, group=group)
                weight = units / total.item() if total else 1 / dist.get_world_size(group)
                for name, differs in zip(names, changed.tolist(), strict=True):
                    if differs:
                        self._average(name, weight, group)

    def _average(self, name: str, weight: float, group: dist.ProcessGroup) -> None:
        buffer, agreed = self._buffers[name], self._agreed[name]
        if buffer.is_floating_point():
            mean = buffer.double() * weight
            dist.all_reduce(mean, group=group)
            buffer.copy_(mean)
        else:
            change = buffer.to(torch.int64) - agreed
            dist.all_reduce(change, group=group)
            buffer.copy_(agreed + change)
        agreed.copy_(buffer)

    def agree_on_buffers(self) -> None:
        """Note the buffers' present values as equal on all replicas (after loading them)."""
        self._agreed = {
            name: self._buffers[name].clone() for names, _ in self._buffer_groups for name in names
        }


def _peers_of(group: dist.ProcessGroup) -> str:
    ranks = (rank for rank in dist.get_process_group_ranks(group) if rank != dist.get_rank())
    return f"rank {', '.join(map(str, ranks))}"


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _holders(names: list[str], world: World) -> Mapping[str, tuple[int, ...]]:
    """Return for each name on any rank the ranks that hold it, in order."""
    everyone: list[list[str]] = [names]
    if world.start is not None:
        everyone = [[] for _ in range(world.size)]
        with waiting_for("all ranks to say what they hold"):
            dist.all_gather_object(everyone, names, group=world.start)
    holders: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for rank, held in enumerate(everyone):
        for name in held:
            holders[name] += (rank,)
    return holders


def _make_groups(
    holders: Mapping[str, tuple[int, ...]], world: World
) -> list[tuple[list[str], dist.ProcessGroup]]:
    """Make a process group for every set of ranks that shares names; return those of this rank."""
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in holders:  # In the order of the model; the same on all ranks.
        if len(holders[name]) > 1:
            shared[holders[name]].append(name)
    groups = []
    for ranks in sorted(shared):
        with waiting_for(f"the group of the ranks {list(ranks)}"):
            group = world.group_of(ranks)
        if world.rank in ranks:
            groups.append((shared[ranks], group))
    return groups
