"""Whereabouts: where one rank is in the plan and in the training, for the line that says why it ended."""

from dataclasses import dataclass

from stagewright.plan import Plan
from stagewright.program import Instruction, Receive, Send
from stagewright.schedule import Action

KIND_WORDS = {"F": "forward", "B": "backward", "I": "input gradients", "W": "weight gradients"}


@dataclass
class Whereabouts:
    """What one rank is doing. It is set before every instruction, so setting it must cost nothing."""

    place: str = "this rank"
    """Rank, stage and replica."""
    phase: str = ""
    """"step 12", "the checkpoint after step 12"; counted from 1. Empty before the first."""
    instruction: Instruction | None = None
    """What it executes, while it walks a program."""
    lost: str = ""
    """What it waited for in vain, while it finds out which rank is missing."""

    def enter(self, phase: str) -> None:
        """Note that another part of the training begins."""
        self.phase, self.instruction = phase, None

    def __str__(self) -> str:
        doing = "" if self.instruction is None else f" at {_words_of(self.instruction)}"
        return f"{self.place}, in {self.phase}{doing}" if self.phase else self.place


def place_of(plan: Plan, rank: int) -> str:
    """Return a rank's place in a plan in words: "rank 2 (stage 1, replica 0 of 2)"."""
    places = [
        f"stage {index}, replica {position} of {len(stage.replicas)}"
        for index, stage in enumerate(plan.stages)
        for position, replica in enumerate(stage.replicas)
        if replica.rank == rank
    ]
    return f"rank {rank} ({'; '.join(places)})"


def _words_of(instruction: Instruction) -> str:
    if isinstance(instruction, Action):
        return f"{instruction} ({KIND_WORDS[instruction.kind]} of {instruction.unit})"
    if isinstance(instruction, Send | Receive):
        what = "the send" if isinstance(instruction, Send) else "the receive"
        return f"{what} of the {instruction.message}"
    return str(instruction)
