"""Programs: messages in the same order at both ends, and no deadlock even if every operation blocks."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.program import Instruction, Message, Receive, Send, check, compile_programs
from stagewright.schedule import Action, Edge, Pipeline, Schedule, Worker
from stagewright.scheduling import SCHEDULES, forward_schedule, make_schedule


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Up to 5 stages of up to 4 replicas with any edges; now and then a rank has a second stage."""
    count = draw(st.integers(1, 5))
    stages: list[tuple[Worker, ...]] = []
    used: list[int] = []
    for _ in range(count):
        ranks = [len(used) + r for r in range(draw(st.integers(1, 4)))]
        used += ranks
        if len(used) > len(ranks) and draw(st.integers(0, 7)) == 0:
            ranks[0] = draw(st.sampled_from(used[: -len(ranks)]))
        stages.append(tuple(Worker(rank, draw(st.integers(1, 4))) for rank in ranks))
    pairs = [(s, t) for s in range(count) for t in range(s + 1, count)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    edges = tuple(Edge(s, t, draw(st.booleans())) for s, t in chosen)
    return Pipeline(stages=tuple(stages), edges=edges, num_microbatches=draw(st.integers(1, 12)))


def chain(num_stages: int, num_microbatches: int) -> Pipeline:
    return Pipeline(
        stages=tuple((Worker(stage, 1),) for stage in range(num_stages)),
        edges=tuple(Edge(stage, stage + 1) for stage in range(num_stages - 1)),
        num_microbatches=num_microbatches,
    )


def dry_run(programs: dict[int, list[Instruction]]) -> dict[int, list[Instruction]]:
    """Run programs whose every send waits for its receive; return what is left when nothing moves."""
    left = {rank: list(program) for rank, program in programs.items()}
    values: set[tuple[int, str, int]] = set()
    moved = True
    while moved:
        moved = False
        for rank, program in left.items():
            if not program:
                continue
            head = program[0]
            if isinstance(head, Action):
                assert (rank, f"{head.stage}{head.kind}", head.microbatch) not in values
                values.add((rank, f"{head.stage}{head.kind}", head.microbatch))
                program.pop(0)
                moved = True
            elif isinstance(head, Send):
                message = head.message
                assert message.sender == rank
                stage, kinds = message.edge.source, "F"
                if not message.forward:
                    stage, kinds = message.edge.target, "BI"
                made = {(rank, f"{stage}{kind}", message.microbatch) for kind in kinds}
                assert made & values, "sent before it was computed"
                other = left[message.receiver]
                if other and other[0] == Receive(message):
                    program.pop(0)
                    other.pop(0)
                    moved = True
    return {rank: program for rank, program in left.items() if program}


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_programs_run_to_the_end_even_if_every_operation_blocks(
    name: str, pipeline: Pipeline
) -> None:
    programs = compile_programs(pipeline, make_schedule(name, pipeline))
    assert not dry_run({rank: list(program) for rank, program in programs.items()})


@given(pipelines())
def test_an_evaluation_runs_to_the_end_even_if_every_operation_blocks(pipeline: Pipeline) -> None:
    programs = compile_programs(pipeline, forward_schedule(pipeline), forward_only=True)
    assert not dry_run({rank: list(program) for rank, program in programs.items()})


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_both_ends_of_every_channel_have_its_messages_in_the_same_order(
    name: str, pipeline: Pipeline
) -> None:
    programs = compile_programs(pipeline, make_schedule(name, pipeline))
    sent: dict[tuple[int, int, bool], list[Message]] = defaultdict(list)
    received: dict[tuple[int, int, bool], list[Message]] = defaultdict(list)
    for rank, program in programs.items():
        for item in program:
            if not isinstance(item, Send | Receive):
                continue
            message = item.message
            ends = sent if isinstance(item, Send) else received
            assert rank == (message.sender if isinstance(item, Send) else message.receiver)
            ends[message.sender, message.receiver, message.forward].append(message)
    assert sent == received


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_every_edge_between_ranks_carries_each_micro_batch_once_each_way(
    name: str, pipeline: Pipeline
) -> None:
    programs = compile_programs(pipeline, make_schedule(name, pipeline))
    found = sorted(
        (m.edge.source, m.edge.target, m.microbatch, m.forward)
        for program in programs.values()
        for item in program
        if isinstance(item, Receive)
        for m in [item.message]
    )
    expected = sorted(
        (edge.source, edge.target, microbatch, forward)
        for edge in pipeline.edges
        for microbatch in range(pipeline.num_microbatches)
        for forward in (True, False)
        if forward or edge.carries_gradient
        if pipeline.routes[edge.source][microbatch] != pipeline.routes[edge.target][microbatch]
    )
    assert found == expected


@given(pipelines())
def test_the_computations_of_a_program_are_its_row_and_wait_for_their_messages(
    pipeline: Pipeline,
) -> None:
    schedule = make_schedule("1f1b", pipeline)
    for rank, program in compile_programs(pipeline, schedule).items():
        assert tuple(item for item in program if isinstance(item, Action)) == schedule.rows[rank]
        arrived: set[tuple[int, int, int, bool]] = set()
        for item in program:
            if isinstance(item, Receive):
                m = item.message
                arrived.add((m.edge.source, m.edge.target, m.microbatch, m.forward))
            elif isinstance(item, Action):
                forward = item.kind == "F"
                for edge in pipeline.edges:
                    mine, other = edge.target, edge.source
                    if not forward:
                        mine, other = other, mine
                    needed = mine == item.stage and (forward or edge.carries_gradient)
                    if needed and pipeline.routes[other][item.microbatch] != rank:
                        assert (edge.source, edge.target, item.microbatch, forward) in arrived


def test_split_backwards_are_checked_and_send_gradients_after_the_input_part() -> None:
    pipeline = chain(2, 2)
    schedule = Schedule.parse("0: 0F0 0F1 0I0 0W0 0B1\n1: 1F0 1I0 1F1 1I1 1W0 1W1")
    sends = [
        item.message.microbatch
        for item in compile_programs(pipeline, schedule)[1]
        if isinstance(item, Send)
    ]
    assert sends == [0, 1]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("0: 0F0 0B0 0F1 0B1\n1: 1F0 1F1 1B0 1B1", "rank 0 waits at 0B0 for 1B0 or 1I0"),
        ("0: 0B0 0F0 0F1 0B1\n1: 1F0 1B0 1F1 1B1", "rank 0 waits at 0B0 for 0F0"),
        ("0: 0F0 0F1 0B0 0B1\n1: 1F1 1B1 1B0 1F0", "rank 1 waits at 1B0 for 1F0"),
        ("0: 0F0 0F1 0W0 0I0 0B1\n1: 1F0 1B0 1F1 1B1", "rank 0 waits at 0W0 for 0I0"),
        ("0: 0F0 0F1 0B0\n1: 1F0 1B0 1F1 1B1", "stage 0 has (F, B, I, W) = (1, 0, 0, 0) for"),
        ("0: 0F0 0F1 0B0 0B1 0B1\n1: 1F0 1B0 1F1 1B1", "(1, 2, 0, 0) for micro-batch 1"),
        ("0: 0F0 0F1 0B0 0B1 0W1\n1: 1F0 1B0 1F1 1B1", "(1, 1, 0, 1) for micro-batch 1"),
        ("0: 0F0 0F1 0B0 0B1 1F0\n1: 1B0 1F1 1B1", "rank 0 has action 1F0"),
        ("0: 0F0 0F1 0B0 0B1 0F2\n1: 1F0 1B0 1F1 1B1", "rank 0 has action 0F2"),
        ("0: 0F0 0F1 0B0 0B1 2F0\n1: 1F0 1B0 1F1 1B1", "rank 0 has action 2F0"),
        ("0: 0F0.0 0F1 0B0 0B1\n1: 1F0 1B0 1F1 1B1", "rank 0 has action 0F0.0"),
        ("0: 0F0 0F1 0B0 0B1", "rows for ranks [0], expected"),
    ],
)
def test_a_wrong_order_is_refused_and_its_action_named(rows: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        check(chain(2, 2), Schedule.parse(rows))
    assert named in str(caught.value)


def test_a_deadlock_names_every_rank_that_waits_and_shows_the_rows() -> None:
    rows = "0: 0F0 0B0 0F1 0B1\n1: 1F0 1F1 1B0 1B1"
    with pytest.raises(InputError) as caught:
        check(chain(2, 2), Schedule.parse(rows))
    assert "rank 1 waits at 1F1 for 0F1" in str(caught.value)
    assert rows in str(caught.value)


def test_the_order_of_check_has_every_action_after_its_needs() -> None:
    pipeline = chain(3, 4)
    done: set[Action] = set()
    for action in check(pipeline, make_schedule("1f1b", pipeline)):
        for need in pipeline.needs(action):
            assert done & set(need if isinstance(need, tuple) else (need,))
        done.add(action)


def test_a_message_prints_where_it_goes() -> None:
    message = Message(Edge(0, 2), 5, forward=False, sender=3, receiver=1)
    expected = "gradients of micro-batch 5 from stage 2 (rank 3) to stage 0 (rank 1)"
    assert str(message) == expected


@pytest.mark.parametrize("name", SCHEDULES)
@given(pipelines())
def test_the_order_is_that_of_turns_in_which_every_rank_that_can_starts_its_next_action(
    name: str, pipeline: Pipeline
) -> None:
    schedule = make_schedule(name, pipeline)
    rows = {rank: list(row) for rank, row in sorted(schedule.rows.items())}
    order: list[Action] = []
    while any(rows.values()):
        done = set(order)
        for row in rows.values():
            needs = pipeline.needs(row[0]) if row else ()
            choices = (need if isinstance(need, tuple) else (need,) for need in needs)
            if row and all(done.intersection(choice) for choice in choices):
                order.append(row.pop(0))
    assert check(pipeline, schedule) == order
