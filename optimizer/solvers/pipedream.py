"""Solver `pipedream`: PipeDream's dynamic programme over nested levels, exact in the space it searches.

Level 1 plans for the devices of one server, level 2 takes those plans as its devices, and so on. With T the
time of a stage on one member (at level 1 the profile, above it the lower level's plan for all its devices),
g the members of the level below (1 at level 1) and M members in use,

    S(p, q, M) = (T + c (M - 1) W / (B M g)) / M                                   one replicated stage
    A[p, q, M] = min( S(p, q, M),
                      min over k, m < M of max( A[p, k, M - m],
                          (T(k, q) + c (m - 1) W(k, q) / (B m)) / m, transfers of k and q ) )

g divides only in S, and plans of a level ignore what enters and leaves them: both as published. A plan
cannot give a stage parts of two servers. Tables of floats and a loop over the cuts in the middle: nothing
recurses over layers, and equals are broken by the order of the cuts.

Source: Narayanan et al., "PipeDream", SOSP 2019, section 3.1, and the planner published with it.
"""

from dataclasses import dataclass

import numpy as np

from stagewright.optimizer.pipedream.cuts import Cuts, cuts_of, thinned
from stagewright.optimizer.pipedream.problem import (
    Level,
    LevelsProblem,
    PlannedPipeline,
    PlannedStage,
    contraction_of,
)
from stagewright.optimizer.pipedream.topology import FloatArray, Topology

MOST_WORK = 7.5e8
"""Table entries to compute: about a second."""
MOST_CUTS = 2000
FEWEST_CUTS = 64


def cuts_for(topology: Topology, levels: tuple[Level, ...]) -> Cuts:
    """Return as many cuts of a graph as the solver can take in about a second."""
    most = MOST_CUTS
    while most > FEWEST_CUTS and work_of(most, levels) > MOST_WORK:
        most -= most // 16 + 1
    return thinned(cuts_of(topology, most), most)


def work_of(num_cuts: int, levels: tuple[Level, ...]) -> float:
    """Return how many table entries a problem takes."""
    pairs = [level.num_members * (level.num_members + 1) / 2 for level in levels]
    return sum(p * num_cuts**3 / 6 for p in pairs[:-1]) + pairs[-1] * num_cuts**2


def solve(problem: LevelsProblem) -> PlannedPipeline | None:
    """Return the best plan; None if none fits into memory."""
    tables: list[_LevelTables] = []
    member_s = np.where(
        problem.cuts.nested, problem.compute_s[None, :] - problem.compute_s[:, None], np.inf
    )
    for index, level in enumerate(problem.levels):
        below = problem.levels[index - 1].num_members if index else 1
        final = index == len(problem.levels) - 1
        tables.append(_LevelTables(problem, level, below, member_s, final))
        tables[-1].fill()
        member_s = tables[-1].plans[level.num_members]
    end = len(problem.cuts) - 1
    value_s = float(member_s[0, end])
    if not np.isfinite(value_s):
        return None
    stages = _expand(problem, tables, len(tables) - 1, 0, end, [()])
    contracted = contraction_of(problem.cuts)
    return PlannedPipeline(
        solver="pipedream",
        stages=tuple(stages),
        value_s=value_s,
        bound_s=min(problem.lower_bound_s, value_s) if contracted else value_s,
        space=_space(problem) + (f"; {contracted}" if contracted else ""),
        cuts=problem.cuts,
        nested=_nested(tables, end),
    )


def _space(problem: LevelsProblem) -> str:
    sizes = " x ".join(str(level.num_members) for level in problem.levels)
    use = "at most" if problem.fewer_devices else "exactly"
    replicas = "no replicas" if problem.straight else "replicas of whole members of a level"
    return f"nested levels of {sizes} members, {use} all of them used, {replicas}"


@dataclass(frozen=True)
class _Piece:
    """A stage of one level."""

    first: int
    last: int
    members: int
    is_base: bool


class _LevelTables:
    """The tables of one level."""

    def __init__(
        self, problem: LevelsProblem, level: Level, below: int, member_s: FloatArray, final: bool
    ) -> None:
        self.problem = problem
        self.level = level
        self.plans: dict[int, FloatArray] = {}
        """By members in use, (n + 1, n + 1) seconds; at the final level the first row only, as (1, n + 1)."""
        self._below = below
        self._member_s = member_s
        self._rows = 1 if final else len(problem.cuts)

    def fill(self) -> None:
        """Compute the plans for 1, 2, ... members."""
        num_members = self.level.num_members
        later = {m: self._later_s(m) for m in range(1, num_members)}
        for used in range(1, num_members + 1):
            best = self._base(used)
            for members in range(1, used):
                if self.problem.straight and members > 1:
                    break
                stage_s = self._limited(later[members], members, num_members - used)
                self._improve(best, self.plans[used - members], stage_s)
            if self.problem.fewer_devices and used > 1:
                np.minimum(best, self.plans[used - 1], out=best)
            self.plans[used] = best

    def pieces(self, first: int, last: int) -> list[_Piece]:
        """Return the stages of the best plan between two cuts, found again from the tables."""
        found: list[_Piece] = []
        used = self.level.num_members
        while True:
            value = self.plans[used][first, last]
            if (
                self.problem.fewer_devices
                and used > 1
                and self.plans[used - 1][first, last] <= value
            ):
                used -= 1
                continue
            if self._base(used)[first, last] <= value:
                found.append(_Piece(first, last, used, is_base=True))
                return found[::-1]
            middle, members = self._last_stage(first, last, used)
            found.append(_Piece(middle, last, members, is_base=False))
            last, used = middle, used - members

    def describe(self, piece: _Piece) -> str:
        """Return a stage of this level with its times, for people."""
        problem, members = self.problem, piece.members
        at, bandwidth = (piece.first, piece.last), self.level.bandwidth_bytes_per_s
        stage_s = float(self._stage_s(members, self._below if piece.is_base else 1)[at])
        inner_s = float(self._member_s[at]) / members
        text = (
            f"cuts {piece.first} to {piece.last} on {members} members (members {inner_s:.6f} s, DP comm "
            f"{stage_s - inner_s:.6f} s"
        )
        transfer_s = problem.transfer_s(bandwidth, members)
        return text + (")" if piece.is_base else f", PP comm {transfer_s[[*at]].max():.6f} s)")

    def _last_stage(self, first: int, last: int, used: int) -> tuple[int, int]:
        for members in range(1, used):
            stage_s = self._limited(
                self._later_s(members),
                members,
                self.level.num_members - used,
            )
            values = np.maximum(self.plans[used - members][first], stage_s[:, last])
            values[: first + 1] = np.inf
            middle = int(np.argmin(values))
            if values[middle] <= self.plans[used][first, last]:
                return middle, members
        raise AssertionError("the tables hold a value that no stage gives")

    def _base(self, used: int) -> FloatArray:
        if self.problem.straight and used > 1:
            return np.full((self._rows, len(self.problem.cuts)), np.inf)
        behind = self.level.num_members - used
        stage_s = self._stage_s(used, self._below)
        return self._limited(stage_s, used, behind)[: self._rows].copy()

    def _stage_s(self, members: int, below: int) -> FloatArray:
        """Return (n + 1, n + 1) seconds of the stage between each two cuts, without transfers."""
        problem, bandwidth = self.problem, self.level.bandwidth_bytes_per_s
        held = problem.parameter_bytes
        weight = problem.reduce_factor * (members - 1) / (bandwidth * members * below)
        return (self._member_s + weight * (held[None, :] - held[:, None])) / members

    def _later_s(self, members: int) -> FloatArray:
        """Return (n + 1, n + 1) seconds of the stage between each two cuts, with both its transfers."""
        transfer_s = self.problem.transfer_s(self.level.bandwidth_bytes_per_s, members)
        both_s = np.maximum(transfer_s[:, None], transfer_s[None, :])
        return np.maximum(self._stage_s(members, 1), both_s)

    def _limited(self, stage_s: FloatArray, members: int, behind: int) -> FloatArray:
        """Return the seconds with infinity for stages that do not fit into memory."""
        limit = self.problem.memory_bytes
        if limit is None:
            return stage_s
        kept = self.problem.kept_bytes
        stashed = -(-behind // members) * (kept[None, :] - kept[:, None])
        return np.where(stashed <= limit, stage_s, np.inf)

    def _improve(self, best: FloatArray, before: FloatArray, stage_s: FloatArray) -> None:
        """Lower best[p, q] to the least of max(before[p, k], stage_s[k, q]) over the cuts k between."""
        size = len(self.problem.cuts)
        if self._rows == 1:
            values = np.maximum(before[0, 1:, None], stage_s[1:]).min(axis=0)
            np.minimum(best[0], values, out=best[0])
            return
        for middle in range(1, size - 1):
            rows = min(middle, self._rows)
            block = best[:rows, middle + 1 :]
            ahead, own = before[:rows, middle, None], stage_s[middle, None, middle + 1 :]
            np.minimum(block, np.maximum(ahead, own), out=block)


def _expand(
    problem: LevelsProblem,
    tables: list[_LevelTables],
    index: int,
    first: int,
    last: int,
    positions: list[tuple[int, ...]],
) -> list[PlannedStage]:
    """Return the stages between two cuts on some members, down to devices.

    Args:
        index: the level.
        positions: the groups of that level that run the same layers, each by its place in the levels above.
    """
    table = tables[index]
    stages: list[PlannedStage] = []
    used = 0
    for piece in table.pieces(first, last):
        members = range(used, used + piece.members)
        used += piece.members
        inner = [(*position, member) for position in positions for member in members]
        if index:
            stages += _expand(problem, tables, index - 1, piece.first, piece.last, inner)
        else:
            stages.append(_planned(problem, piece, inner))
    return stages


def _planned(
    problem: LevelsProblem, piece: _Piece, positions: list[tuple[int, ...]]
) -> PlannedStage:
    """Return a stage of devices, with its times inside its group; levels above add their own."""
    level = problem.levels[0]
    sizes = [other.num_members for other in reversed(problem.levels)]
    ranks = []
    for position in positions:
        rank = 0
        for size, member in zip(sizes, position, strict=True):
            rank = rank * size + member
        ranks.append(rank)
    compute_s = float(problem.compute_s[piece.last] - problem.compute_s[piece.first])
    held = float(problem.parameter_bytes[piece.last] - problem.parameter_bytes[piece.first])
    transfer_s = problem.transfer_s(level.bandwidth_bytes_per_s, piece.members)
    groups = len(positions) // piece.members
    return PlannedStage(
        first=piece.first,
        last=piece.last,
        ranks=tuple(sorted(ranks)),
        compute_s=compute_s / len(ranks),
        reduce_s=problem.reduce_s(held, piece.members, level.bandwidth_bytes_per_s) / groups,
        transfer_s=float(transfer_s[piece.first]) / groups,
        out_transfer_s=0.0 if piece.is_base else float(transfer_s[piece.last]) / groups,
    )


def _nested(tables: list[_LevelTables], end: int) -> tuple[str, ...]:
    """Return, per upper level, outermost first, the stages of that level, for people."""
    lines = []
    pieces = [(0, end)]
    for index in range(len(tables) - 1, 0, -1):
        found = [piece for first, last in pieces for piece in tables[index].pieces(first, last)]
        parts = ", ".join(map(tables[index].describe, found))
        lines.append(f"level {index + 1}: {parts}")
        pieces = [(piece.first, piece.last) for piece in found]
    return tuple(lines)
