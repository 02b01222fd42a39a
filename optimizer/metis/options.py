"""All stages that a plan can have, as arrays: for one node sequence and one number of micro-batches.

An option is a range of ranks with a strategy; its arrays are indexed by first layer and end of layers.
Options within one device type do not depend on the rank that they start at: each is kept once per type.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cost import BYTES_PER_MS, slowest_bandwidth
from .memory import (
    MEMORY_FACTOR,
    MEMORY_OFFSET_MB,
    memory_capacity_mb,
    memory_per_layer_mb,
)
from .plan import held_per_layer_mb
from .problem import Problem, Span, binary_digits, powers_of_two

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """K options that start in one device type and end in one; infinite where a stage is not allowed."""

    first_ranks: NDArray[np.int64]
    """(N,) For each first rank, the first option that may start there."""
    end_ranks: NDArray[np.int64]
    """(N,) ... and the one behind the last."""
    sizes: NDArray[np.int64]
    """(K,) devices."""
    degrees: NDArray[np.int64]
    """(K,) tensor parallelism."""
    stage_ms: FloatArray
    """(K, L + 1, L + 1) forward plus backward of one micro-batch."""
    update_ms: FloatArray
    """(K, L + 1, L + 1)"""
    all_reduce_ms: FloatArray
    """(K, L + 1, L + 1)"""
    message_ms: FloatArray
    """(K, L + 1, T) to the next stage, by the end of the layers and the type of its last rank."""
    last_ms: FloatArray
    """(K,) what the last stage adds: all micro-batches' time outside the layers."""
    end_type: int
    """Position of the last rank's type in the node sequence."""

    def limited(self, limits: Sequence[float]) -> "Options":
        """Return the options with a stage whose time, update and all-reduce are within limits."""
        allowed = self.stage_ms <= limits[0]
        allowed &= self.update_ms <= limits[1]
        allowed &= self.all_reduce_ms <= limits[2]
        allowed &= self.stage_ms < np.inf
        kept = np.flatnonzero(allowed.any(axis=(1, 2)))
        stage_ms = np.where(allowed[kept], self.stage_ms[kept], np.inf)
        return Options(
            first_ranks=np.searchsorted(kept, self.first_ranks),
            end_ranks=np.searchsorted(kept, self.end_ranks),
            sizes=self.sizes[kept],
            degrees=self.degrees[kept],
            stage_ms=stage_ms,
            update_ms=self.update_ms[kept],
            all_reduce_ms=self.all_reduce_ms[kept],
            message_ms=self.message_ms[kept],
            last_ms=self.last_ms[kept],
            end_type=self.end_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSet:
    """Every stage that is allowed, for one order of the ranks and one number of micro-batches."""

    ranks: Span
    batches: int
    blocks: tuple[Options, ...]

    def limited(self, limits: Sequence[float]) -> "OptionSet":
        """Return the options within limits on stage, update and all-reduce time, in ms."""
        blocks = tuple(block.limited(limits) for block in self.blocks)
        return OptionSet(ranks=self.ranks, batches=self.batches, blocks=blocks)

    def at(self, rank: int) -> Iterator[tuple[Options, slice]]:
        """Yield the options that start at a rank."""
        for block in self.blocks:
            first, end = int(block.first_ranks[rank]), int(block.end_ranks[rank])
            if first < end:
                yield block, slice(first, end)


def build_options(
    problem: Problem, ranks: Span, batches: int, device_memory: bool = False
) -> OptionSet:
    """Return all options: groups of power-of-two sizes, tensor-parallel groups of one device type each.

    Args:
        problem: what to plan.
        ranks: all ranks, in the order of the node sequence.
        batches: micro-batches in a step.
        device_memory: require that the layers fit each device, beside Metis's own memory rule.
    """
    builder = _Builder(problem, ranks, batches, device_memory)
    blocks: list[Options | None] = []
    first = 0
    for position, (_, count) in enumerate(ranks.counts):
        pure = [
            (ranks.part(first, size), degree)
            for size in powers_of_two(count)
            for degree in powers_of_two(size)
        ]
        blocks.append(builder.pure_block(pure, position, range(first, first + count)))
        for end_type in range(position + 1, len(ranks.counts)):
            mixed = [
                (start, *choice)
                for start in range(first, first + count)
                for choice in _mixed(ranks, start, end_type)
            ]
            blocks.append(builder.mixed_block(mixed, end_type))
        first += count
    found = tuple(block for block in blocks if block is not None)
    return OptionSet(ranks=ranks, batches=batches, blocks=found)


def _mixed(ranks: Span, start: int, end_type: int) -> list[tuple[Span, int]]:
    """Ranges of ranks from start that end in a later type, with every degree that mixes no types."""
    low = sum(count for _, count in ranks.counts[:end_type])
    high = low + ranks.counts[end_type][1]
    found = []
    for size in powers_of_two(ranks.size):
        if low < start + size <= high:
            span = ranks.part(start, size)
            found += [
                (span, degree) for degree in powers_of_two(size) if span.is_pure(size // degree)
            ]
    return found


class _Builder:
    """Makes the arrays; what options share is computed once."""

    def __init__(self, problem: Problem, ranks: Span, batches: int, device_memory: bool) -> None:
        self.problem, self.ranks, self.batches = problem, ranks, batches
        self.device_memory = device_memory
        settings = problem.settings
        self.samples = settings.global_batch_size // batches
        num_layers = settings.num_layers
        places = np.arange(num_layers + 1)
        self.num_layers_of = places[None, :] - places[:, None]
        """(L + 1, L + 1) layers of a stage, by its first layer and its end."""
        self.parameter_bytes = self._parameter_bytes()
        self.slowest_ms: dict[tuple[int, bool, tuple[tuple[str, int], ...]], FloatArray] = {}
        self.asked_mb: dict[tuple[bool, int, int], FloatArray] = {}

    def pure_block(
        self, choices: Sequence[tuple[Span, int]], end_type: int, type_ranks: range
    ) -> Options | None:
        """Return the options inside one type, that start wherever they fit; choices by increasing size."""
        chosen = [choice for choice in choices if self._shares(*choice) is not None]
        sizes = np.array([span.size for span, _ in chosen])
        room = np.zeros(self.ranks.size, dtype=np.int64)
        room[type_ranks.start : type_ranks.stop] = range(len(type_ranks), 0, -1)
        ends = np.searchsorted(sizes, room, side="right")
        return self._block(chosen, end_type, np.zeros_like(ends), ends)

    def mixed_block(
        self, choices: Sequence[tuple[int, Span, int]], end_type: int
    ) -> Options | None:
        """Return options of several types, each with its own first rank; choices in that order."""
        chosen = [choice for choice in choices if self._shares(*choice[1:]) is not None]
        starts = np.array([start for start, _, _ in chosen])
        ranks = np.arange(self.ranks.size)
        firsts = np.searchsorted(starts, ranks)
        ends = np.searchsorted(starts, ranks, side="right")
        return self._block([choice[1:] for choice in chosen], end_type, firsts, ends)

    def _block(
        self,
        chosen: Sequence[tuple[Span, int]],
        end_type: int,
        first_ranks: NDArray[np.int64],
        end_ranks: NDArray[np.int64],
    ) -> Options | None:
        if not chosen:
            return None
        num_layers = self.problem.settings.num_layers
        degrees = np.array([degree for _, degree in chosen])
        sizes = np.array([span.size for span, _ in chosen])
        replicas = sizes // degrees
        bandwidths = np.array([slowest_bandwidth(self.problem, span.types) for span, _ in chosen])
        factors = 2 * (replicas - 1) / (replicas * bandwidths * BYTES_PER_MS * degrees)
        optimizer_ms = 2 * self.problem.folder.first[1].execution_time.optimizer_time_ms
        return Options(
            first_ranks=first_ranks,
            end_ranks=end_ranks,
            sizes=sizes,
            degrees=degrees,
            stage_ms=np.array([self._stage_ms(*choice) for choice in chosen]),
            update_ms=(optimizer_ms / num_layers / degrees)[:, None, None] * self.num_layers_of,
            all_reduce_ms=factors[:, None, None] * self.parameter_bytes,
            message_ms=np.array([self._messages(*choice) for choice in chosen]),
            last_ms=np.array([self._outside_layers_ms(*choice) for choice in chosen]),
            end_type=end_type,
        )

    def _stage_ms(self, span: Span, degree: int) -> FloatArray:
        """(L + 1, L + 1) time of the slowest replica, infinite where memory does not suffice."""
        pairs = self._shares(span, degree)
        assert pairs is not None
        is_mixed = len(span.types) > 1
        key = (degree, is_mixed, pairs)
        if key not in self.slowest_ms:
            times = [
                _differences(self._layers_ms(name, degree, share, is_mixed))
                for name, share in pairs
            ]
            self.slowest_ms[key] = np.maximum.reduce(times)
        return np.where(self._allowed(span, degree), self.slowest_ms[key], np.inf)

    def _shares(self, span: Span, degree: int) -> tuple[tuple[str, int], ...] | None:
        """(type, samples) of the replicas; None if the profiles do not reach that far."""
        num_replicas = span.size // degree
        size = self.problem.settings.global_batch_size // num_replicas // self.batches
        if degree not in self.problem.degrees or not self.problem.is_measured(size):
            return None
        if len(span.types) == 1:
            return ((span.types[0], size),)
        pairs = self.problem.typed_shares(span, num_replicas, degree, self.samples)
        reachable = max(self.problem.batch_sizes).bit_length()
        return None if max(share for _, share in pairs).bit_length() > reachable else pairs

    def _layers_ms(self, name: str, degree: int, share: int, is_mixed: bool) -> FloatArray:
        """(L,) time of each layer; Metis prices the shares of a mixed group by their binary digits."""
        sizes = binary_digits(share) if is_mixed else (share,)
        times = [self.problem.profile(name, degree, size).execution_time for size in sizes]
        total: FloatArray = np.sum([time.layer_compute_total_ms for time in times], axis=0)
        return total

    def _allowed(self, span: Span, degree: int) -> NDArray[np.bool_]:
        """(L + 1, L + 1) whether a stage has a layer and enough memory."""
        strategy = (span.size // degree, degree)
        key = (len(span.types) == 1, *strategy)
        if key not in self.asked_mb:
            asked = memory_per_layer_mb(self.problem, self.ranks, span, strategy, self.batches)
            self.asked_mb[key] = _differences(np.array(asked))
        asked_mb = MEMORY_OFFSET_MB + MEMORY_FACTOR * self.asked_mb[key]
        allowed = (self.num_layers_of > 0) & (asked_mb <= memory_capacity_mb(self.problem, span))
        if self.device_memory:
            for name, held in held_per_layer_mb(self.problem, span, degree, self.samples):
                allowed &= _differences(np.array(held)) <= self.problem.device(name).memory_mb
        return allowed

    def _messages(self, span: Span, degree: int) -> FloatArray:
        """(L + 1, T) time of the message to a stage that ends in each type from this one's last on."""
        settings = self.problem.settings
        names = self.ranks.types
        size = settings.global_batch_size // (span.size // degree) // self.batches
        rows = size * settings.sequence_length
        elements = np.full(settings.num_layers + 1, float(rows * settings.hidden_size))
        elements[settings.num_layers - 1] = rows * settings.vocab_size / degree
        first, last = names.index(span.types[0]), names.index(span.types[-1])
        times = np.full((settings.num_layers + 1, len(names)), np.inf)
        for end_type in range(last, len(names)):
            bandwidth = slowest_bandwidth(self.problem, names[first : end_type + 1])
            times[:, end_type] = elements / (bandwidth * BYTES_PER_MS)
        return times

    def _outside_layers_ms(self, span: Span, degree: int) -> float:
        size = self.problem.settings.global_batch_size // (span.size // degree) // self.batches
        return self.batches * max(
            self.problem.profile(name, degree, size).outside_layers_ms for name in span.types
        )

    def _parameter_bytes(self) -> FloatArray:
        """(L + 1, L + 1) parameters of a stage, for one tensor-parallel rank."""
        sizes = self.problem.folder.first[1].model.parameters.parameters_per_layer_bytes
        num_layers = self.problem.settings.num_layers
        has_first = np.zeros_like(self.num_layers_of)
        has_last = np.zeros_like(self.num_layers_of)
        has_first[0, :], has_last[:, num_layers] = 1, 1
        num_middle = self.num_layers_of - has_first - has_last
        middle_bytes = sizes[min(1, num_layers - 1)]
        whole: FloatArray = has_first * sizes[0] + has_last * sizes[-1] + num_middle * middle_bytes
        return whole


def _differences(per_layer: FloatArray) -> FloatArray:
    """(L + 1, L + 1) sums over the layers from the first index to the second."""
    sums = np.concatenate(([0.0], np.cumsum(per_layer)))
    return sums[None, :] - sums[:, None]
