"""Runs of programs without processes, in which operations block."""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping

from stagewright.flushless import Update
from stagewright.program import Instruction, Message, Receive, Send, messages_to
from stagewright.schedule import Action, Pipeline


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


def blocked_in_queues(
    pipeline: Pipeline,
    programs: Mapping[int, tuple[Instruction, ...]],
    queue_of: Callable[[Message], Hashable],
) -> dict[int, object]:
    """Run programs as NCCL does: each rank executes what it has in one queue one after the other.

    A receive only takes its place in its queue; a send waits until it is at the head of its queue at both
    ends, an action until its messages have arrived, an update for all replicas. Return where each rank that
    does not come to its end is stuck.

    Args:
        pipeline: of the programs.
        programs: of all ranks.
        queue_of: the queue of a message, the same at both ends.
    """
    left = {rank: deque(program) for rank, program in programs.items()}
    queues: dict[tuple[int, Hashable], deque[Message]] = defaultdict(deque)
    arrived: set[Message] = set()

    def at_head(message: Message) -> bool:
        ends = (queues[rank, queue_of(message)] for rank in (message.sender, message.receiver))
        return all(queue and queue[0] == message for queue in ends)

    def passes(rank: int) -> bool:
        """Do what a rank comes to next; return whether it could."""
        head, together = left[rank][0], [rank]
        if isinstance(head, Receive):
            queues[rank, queue_of(head.message)].append(head.message)
        elif isinstance(head, Send):
            queue = queues[rank, queue_of(head.message)]
            if head.message not in queue:
                queue.append(head.message)
            if not at_head(head.message):
                return False
            queue.popleft()
            queues[head.message.receiver, queue_of(head.message)].popleft()
            arrived.add(head.message)
        elif isinstance(head, Action):
            needed = (m for m in messages_to(pipeline, head) if m.sender != m.receiver)
            if not arrived.issuperset(needed):
                return False
        else:
            together = [worker.rank for worker in pipeline.stages[head.stage]]
            if any(not left[other] or left[other][0] != head for other in together):
                return False
        for other in together:
            left[other].popleft()
        return True

    moved = True
    while moved:
        moved = False
        for rank, program in left.items():
            while program and passes(rank):
                moved = True
    return {rank: program[0] for rank, program in left.items() if program}
