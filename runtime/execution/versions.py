"""Versions of a stage's weights: what a unit went forward with, its backward uses too.

The trained parameters (the masters) are the newest version; the optimizer updates them in place. A unit runs
on Parameter objects of its version, put into the stage's modules around its forward and again around its
backward, so that a stage that runs forward again, or reads a parameter anew, sees the right one. They share
their version's storage. Only an update while units of the newest version are still to go backward gives the
masters new storage, so a rank holds as many versions as are in use (flushless.versions_held), not one more.

Buffers (running statistics) are not versioned.

Source: Narayanan et al., "PipeDream", SOSP 2019, weight stashing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from stagewright.runtime.messages.values import Payload
from stagewright.schedule import Unit

from .stage import StageRunner, UnitInputs


class WeightVersions:
    """The versions of one module's trained parameters."""

    def __init__(self, module: nn.Module) -> None:
        self._masters: list[nn.Parameter] = []
        self._places: list[tuple[nn.Module, str, int]] = []
        """Where a parameter stands, and which master it is."""
        position: dict[int, int] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is None or not parameter.requires_grad:
                    continue
                if id(parameter) not in position:
                    position[id(parameter)] = len(self._masters)
                    self._masters.append(parameter)
                self._places.append((owner, name, position[id(parameter)]))
        self._of_unit: Mapping[int, int] = {}
        self._alive: dict[int, list[nn.Parameter]] = {}
        self._left: Counter[int] = Counter()
        """By version: units that have not gone backward yet."""
        self._newest = 0
        self.most_alive = 1
        """The most versions that were held at once, since the last `begin`."""

    def begin(self, of_unit: Mapping[int, int]) -> None:
        """Start a run in which micro-batches use these versions; version 0 is what the weights are now."""
        self._of_unit = of_unit
        self._left = Counter(of_unit.values())
        self._newest = 0
        self._alive = {0: self._aliases()}
        self.most_alive = 1

    def end(self) -> None:
        """Put the masters back into the modules; all units must have gone backward."""
        assert not self._left.total(), "a unit has not gone backward"
        self._install(self._masters)
        self._alive = {}

    def put_in(self, microbatch: int) -> None:
        """Let the modules have a unit's version."""
        self._install(self._alive[self._of_unit[microbatch]])

    @contextmanager
    def backward_of(self, microbatch: int) -> Iterator[None]:
        """Let the modules have a unit's version; what is added to its gradients goes to the masters'."""
        parameters = self._alive[self._of_unit[microbatch]]
        self._install(parameters)
        for parameter, master in zip(parameters, self._masters, strict=True):
            parameter.grad = master.grad
        yield
        for parameter, master in zip(parameters, self._masters, strict=True):
            master.grad, parameter.grad = parameter.grad, None

    def release(self, microbatch: int) -> None:
        """Note that a unit has gone backward; forget an old version when its last unit has."""
        version = self._of_unit[microbatch]
        self._left[version] -= 1
        if not self._left[version] and version < self._newest:
            del self._alive[version]

    def advance(self) -> None:
        """Make way for an update of the masters in place: what is still to be used keeps its storage."""
        if self._left[self._newest]:
            for master in self._masters:
                master.data = master.data.clone()
        else:
            del self._alive[self._newest]
        self._newest += 1
        self._alive[self._newest] = self._aliases()
        self.most_alive = max(self.most_alive, len(self._alive))

    def _aliases(self) -> list[nn.Parameter]:
        """Return parameters of the masters' storage; autograd does not see its changes (hence `advance`)."""
        return [nn.Parameter(master.data) for master in self._masters]

    def _install(self, parameters: list[nn.Parameter]) -> None:
        for owner, name, position in self._places:
            if type(owner).__setattr__ is nn.Module.__setattr__:
                owner._parameters[name] = parameters[position]
            else:  # Recurrent layers keep lists of their parameters.
                setattr(owner, name, parameters[position])


class VersionedRunner:
    """Runs the units of a stage, each on its version of the weights; micro-batches have no slices."""

    def __init__(self, runner: StageRunner) -> None:
        self._runner = runner
        self.index = runner.index
        self.versions = WeightVersions(runner.module)

    @property
    def input_names(self) -> tuple[str, ...]:
        return self._runner.input_names

    @property
    def units_held(self) -> int:
        return self._runner.units_held

    def forward(self, unit: Unit, given: UnitInputs) -> dict[int, Payload]:
        """Run one unit forward; an evaluation, which is between two runs, uses the weights as they are."""
        if torch.is_grad_enabled():
            self.versions.put_in(unit.microbatch)
        return self._runner.forward(unit, given)

    def backward(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run one unit backward."""
        with self.versions.backward_of(unit.microbatch):
            gradients = self._runner.backward(unit, arrived)
        self.versions.release(unit.microbatch)
        return gradients

    def backward_of_inputs(
        self, unit: Unit, arrived: dict[int, list[torch.Tensor]]
    ) -> dict[int, list[torch.Tensor]]:
        """Run the part of the backward that other stages wait for."""
        with self.versions.backward_of(unit.microbatch):
            return self._runner.backward_of_inputs(unit, arrived)

    def backward_of_weights(self, unit: Unit) -> None:
        """Run what is left of the backward."""
        with self.versions.backward_of(unit.microbatch):
            self._runner.backward_of_weights(unit)
        self.versions.release(unit.microbatch)
