"""Gradient sums over ranks, in buckets, each started as soon as its gradients are complete.

A bucket holds parameters that the same ranks share, of one type, the last layers first: their gradients are
complete first in a backward. While a stage's last backward of a step runs, each parameter reports when its
gradient is there; a bucket whose parameters all have reported is summed while the backward goes on with the
layers before. What is left is started when the step ends. All ranks of a group start its buckets in the same
order, so the sums meet; a rank that had no unit takes part with zeros.

Source: Li et al., "PyTorch Distributed", VLDB 2020, section 3.2 (buckets in reverse order of the layers).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from stagewright.document import InputError
from stagewright.program import Instruction
from stagewright.runtime.ranks.faults import waiting_for
from stagewright.schedule import Action

BUCKET_BYTES = 4 * 2**20
"""A bucket has at least so much: large enough to use a link, small enough to start early."""

SharedNames = tuple[Sequence[str], dist.ProcessGroup, str]
"""Names of parameters, the group of ranks that share them, and who these are, for people."""


@dataclass
class _Bucket:
    names: list[str]
    parameters: list[nn.Parameter]
    missing: set[int]
    """The ids of parameters whose gradient may still change in this step."""
    sums: torch.Tensor | None = None
    """Gradients and, behind them, for each parameter how many ranks have one; None: not started."""
    work: dist.Work | None = None


@dataclass
class _Queue:
    """The buckets of one group, in the order in which every rank starts them."""

    group: dist.ProcessGroup
    peers: str
    buckets: list[_Bucket]
    num_started: int = 0


class GradientSums:
    """The sums of one rank."""

    def __init__(
        self,
        shared: Sequence[SharedNames],
        parameters: Mapping[str, nn.Parameter],
        parameters_of_stage: Mapping[int, Sequence[nn.Parameter]],
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Lay out the buckets; nothing is sent.

        Args:
            shared: for each group of this rank, the names in an order that all its ranks agree on: as they
                stand in the model.
            parameters: this rank's, by name.
            parameters_of_stage: of each of its stages, the trained parameters, each once.
            bucket_bytes: the least bytes of a bucket, but for the last of a group.
        """
        self._queues = [
            _Queue(group, peers, _buckets(names, parameters, bucket_bytes))
            for names, group, peers in shared
        ]
        self._queue_of = {
            id(parameter): (queue, bucket)
            for queue in self._queues
            for bucket in queue.buckets
            for parameter in bucket.parameters
        }
        self._of_stage = {
            stage: [p for p in own if id(p) in self._queue_of]
            for stage, own in parameters_of_stage.items()
        }
        self._stages_left: dict[int, int] = {}
        """By parameter: how many of this rank's stages may still add to its gradient."""
        self._begin()

    @property
    def num_started(self) -> int:
        """How many buckets are being summed."""
        return sum(queue.num_started for queue in self._queues)

    def overlap(
        self, program: Sequence[Instruction]
    ) -> dict[Instruction, Callable[[], AbstractContextManager[None]]]:
        """Return for the last backward of each stage what the executor must run it in."""
        last: dict[int, Action] = {}
        for instruction in program:
            if isinstance(instruction, Action) and instruction.kind in ("B", "W"):
                last[instruction.stage] = instruction
        return {
            action: partial(self._last_backward, stage)
            for stage, action in last.items()
            if self._of_stage.get(stage)
        }

    def finish(self) -> None:
        """Start what is left, wait for all sums, and give them to the parameters.

        A gradient that no rank has stays None, as in one process.

        Raises:
            PeerLostError: a rank that shares a parameter is gone or stuck.
            InputError: a gradient changed after it was sent.
        """
        for queue in self._queues:
            self._start(queue, everything=True)
        for queue in self._queues:
            with waiting_for(f"the gradient sum with {queue.peers}"):
                for bucket in queue.buckets:
                    if bucket.work is not None:
                        bucket.work.wait()
            for bucket in queue.buckets:
                _take_sums(bucket)
        self._begin()

    def _begin(self) -> None:
        """Forget the step before."""
        for queue in self._queues:
            queue.num_started = 0
            for bucket in queue.buckets:
                bucket.missing = {id(parameter) for parameter in bucket.parameters}
        self._stages_left = {}
        for own in self._of_stage.values():
            for parameter in own:
                self._stages_left[id(parameter)] = self._stages_left.get(id(parameter), 0) + 1

    @contextmanager
    def _last_backward(self, stage: int) -> Iterator[None]:
        """Watch the last backward of a stage in a step."""
        own = self._of_stage[stage]
        handles = [
            parameter.register_post_accumulate_grad_hook(self._complete)  # type: ignore[no-untyped-call]
            for parameter in own
            if self._stages_left[id(parameter)] == 1
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for parameter in own:
            self._stages_left[id(parameter)] -= 1
            if not self._stages_left[id(parameter)]:
                self._complete(parameter)

    def _complete(self, parameter: torch.Tensor) -> None:
        """Note that a gradient will not change any more; start sums that this allows."""
        queue, bucket = self._queue_of[id(parameter)]
        bucket.missing.discard(id(parameter))
        if not bucket.missing:
            self._start(queue, everything=False)

    def _start(self, queue: _Queue, *, everything: bool) -> None:
        """Start the next buckets of a group that are complete."""
        while queue.num_started < len(queue.buckets):
            bucket = queue.buckets[queue.num_started]
            if bucket.missing and not everything:
                return
            bucket.sums = _flat(bucket.parameters)
            for parameter in bucket.parameters:
                parameter.grad = None
            with waiting_for(f"the gradient sum with {queue.peers}"):
                bucket.work = dist.all_reduce(bucket.sums, group=queue.group, async_op=True)
            queue.num_started += 1


def _buckets(
    names: Sequence[str], parameters: Mapping[str, nn.Parameter], bucket_bytes: int
) -> list[_Bucket]:
    """Return the buckets of one group, the last parameters of the model first."""
    buckets: list[_Bucket] = []
    size = 0
    for name in reversed(names):
        parameter = parameters[name]
        is_other = buckets and buckets[-1].parameters[0].dtype != parameter.dtype
        if not buckets or is_other or size >= bucket_bytes:
            buckets.append(_Bucket([], [], set()))
            size = 0
        buckets[-1].names.append(name)
        buckets[-1].parameters.append(parameter)
        size += parameter.nbytes
    return buckets


def _flat(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Return the gradients of parameters of one type, zeros where there is none, and which there are."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor(
        [p.grad is not None for p in parameters],
        dtype=gradients[0].dtype,
        device=gradients[0].device,
    )
    return torch.cat([*(gradient.reshape(-1) for gradient in gradients), there])


def _take_sums(bucket: _Bucket) -> None:
    """Give a bucket's sums to its parameters."""
    assert bucket.sums is not None
    sizes = [parameter.numel() for parameter in bucket.parameters]
    *parts, there = torch.split(bucket.sums, [*sizes, len(sizes)])
    found = zip(bucket.names, bucket.parameters, parts, there.tolist(), strict=True)
    for name, parameter, part, count in found:
        if parameter.grad is not None:
            raise InputError(
                f"parameter {name!r} gets its gradient in several parts within one backward (a reentrant "
                "checkpoint?), so its sum was started too early; train with --no-overlap"
            )
        parameter.grad = part.view_as(parameter) if count else None
    bucket.sums = bucket.work = None
