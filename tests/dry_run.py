"""A run of programs without processes, in which every operation blocks."""

from stagewright.flushless import Update
from stagewright.program import Instruction, Receive, Send
from stagewright.schedule import Pipeline


def blocked(pipeline: Pipeline, programs: dict[int, list[Instruction]]) -> dict[int, object]:
    """Run programs whose sends wait for their receives and whose updates wait for all replicas.

    Return where each rank that does not come to its end is stuck.
    """
    moved = True
    while moved:
        moved = False
        for rank, program in programs.items():
            head = program[0] if program else None
            together = [rank]
            if isinstance(head, Receive | None):
                continue
            if isinstance(head, Update):
                together = [worker.rank for worker in pipeline.stages[head.stage]]
                if any(programs[other][:1] != [head] for other in together):
                    continue
            if isinstance(head, Send):
                together = [rank, head.message.receiver]
                if programs[head.message.receiver][:1] != [Receive(head.message)]:
                    continue
            for other in together:
                programs[other].pop(0)
            moved = True
    return {rank: program[0] for rank, program in programs.items() if program}
