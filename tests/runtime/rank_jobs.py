"""What ranks do in the tests: functions of a World, run by the pool of ranks (conftest.py)."""

import os
import resource
import signal
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagewright.document import InputError
from stagewright.plan import Border, NamedValue
from stagewright.program import Message
from stagewright.runtime.execution.gradient_sums import GradientSums
from stagewright.runtime.messages.codecs import pack_border, unpack_border
from stagewright.runtime.messages.exchange import Exchange
from stagewright.runtime.messages.values import Precision, ValueMismatchError
from stagewright.runtime.ranks.world import World
from stagewright.runtime.session import Session
from stagewright.runtime.storage.folders import STOP_REQUEST
from stagewright.runtime.storage.weights import save_tensors, state_of_stages
from stagewright.runtime.training.batches import MicrobatchData
from stagewright.runtime.training.data import TrainingData
from stagewright.runtime.training.memory import peak_of, recorded_allocations, storage_bytes
from stagewright.runtime.training.settings import Settings
from stagewright.runtime.training.trainer import History, TrainingOptions, train
from stagewright.runtime.watching.report import RunReport, make_report
from stagewright.runtime.watching.watch import WatchOptions
from stagewright.schedule import Action, Edge
from stagewright.value import NumberSpec, PerSample, TensorSpec


def start(world: World, directory: str, task: str, settings: dict[str, Any]) -> Session:
    return Session.start(Path(directory), task, world, Settings(**settings))


def step_data(session: Session, step: int) -> MicrobatchData:
    return TrainingData(session).of_step(step)


def gradients(world: World, **arguments: Any) -> tuple[dict[int, float], dict[str, Any]]:
    """Return this rank's losses and summed gradients of one step."""
    session = start(world, **arguments)
    losses = session.compute_gradients(step_data(session, 0), 0)
    named = {
        name: None if p.grad is None else p.grad.numpy()
        for name, p in session.reduction.parameters.items()
    }
    return losses, named


def steps(
    world: World, num_steps: int, **arguments: Any
) -> tuple[list[dict[int, float]], dict[str, Any]]:
    """Return this rank's losses of some steps and its part of the state dict after them."""
    session = start(world, **arguments)
    losses = [session.train_step(step_data(session, step), step) for step in range(num_steps)]
    session.average_buffers()
    return losses, {name: t.numpy() for name, t in state_of_stages(session.modules).items()}


def steps_without_flush(
    world: World, num_steps: int, keeps_versions: bool = True, **arguments: Any
) -> tuple[list[dict[int, float]], dict[str, Any], int]:
    """Return what `steps` does, of steps that run on from one to the next, and the most versions held."""
    session = start(world, **arguments)
    assert session.windows is not None
    versions = session.windows.versions
    if not keeps_versions:
        vars(versions)["advance"] = lambda: None
        begin = versions.begin
        vars(versions)["begin"] = lambda of_unit: begin(dict.fromkeys(of_unit, 0))
    done = session.train_steps(lambda step: step_data(session, step), range(num_steps), num_steps)
    session.average_buffers()
    state = {name: t.numpy() for name, t in state_of_stages(session.modules).items()}
    return [losses for _, losses in done], state, versions.most_alive


def training(world: World, options: dict[str, Any], **arguments: Any) -> Any:
    """Run the trainer and return its history."""
    return train(start(world, **arguments), TrainingOptions(**options), progress=False)


def peak_units(world: World, **arguments: Any) -> int:
    """Return the most units that this rank's stages held at once in one step."""
    session = start(world, **arguments)
    most = 0
    for runner in session.executor.stages.values():
        forward = runner.forward

        def counted(*args: Any, runner: Any = runner, forward: Any = forward) -> Any:
            nonlocal most
            result = forward(*args)
            most = max(most, runner.units_held)
            return result

        vars(runner)["forward"] = counted
    session.compute_gradients(step_data(session, 0), 0)
    return most


def stop_itself(world: World, victim: int, signal_number: int) -> None:
    """Send one rank a signal."""
    if world.rank == victim:
        os.kill(os.getpid(), signal_number)
    assert signal.Signals(signal_number)


def trained_weights(
    world: World, options: dict[str, Any], output: str, **arguments: Any
) -> list[float]:
    """Run the trainer, write the weights as the command does, and return the losses."""
    session = start(world, **arguments)
    history = train(session, TrainingOptions(**options), progress=False)
    weights = session.final_weights()
    if weights is not None:
        save_tensors(Path(output), weights, {})
    return history.losses


def measured_steps(
    world: World, num_steps: int, keep: int, **arguments: Any
) -> tuple[int, int, int]:
    """Return how many steps' times a session keeps, how many it ran, and how many the report counts."""
    session = start(world, **arguments)
    session.measured = deque(maxlen=keep)
    for step in range(num_steps):
        session.train_step(step_data(session, step), step)
    report = make_report(session)
    assert report is not None
    return len(session.measured), session.num_steps_run, report.num_steps


def steps_with_an_overflow(
    world: World, num_steps: int, victim: int, bad_step: int, **arguments: Any
) -> tuple[list[bool], list[float]]:
    """Let one rank's gradient overflow in one step; return which steps changed weights, and the scales."""
    session = start(world, **arguments)
    assert session.scaler is not None
    changed, scales = [], []
    for step in range(num_steps):
        before = {name: tensor.clone() for name, tensor in session.tensors.items()}
        handle = None
        if world.rank == victim and step == bad_step:
            parameter = next(iter(session.reduction.parameters.values()))
            handle = parameter.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient * float("inf")
            )
        session.train_step(step_data(session, step), step)
        if handle is not None:
            handle.remove()
        changed.append(
            any(not torch.equal(tensor, before[n]) for n, tensor in session.tensors.items())
        )
        scales.append(session.scaler.state.scale)
    return changed, scales


def watched_training(
    world: World, options: dict[str, Any], watch: dict[str, Any], **arguments: Any
) -> tuple[History, RunReport | None]:
    """Run the trainer, watched; return its history and the report."""
    session = start(world, **arguments)
    chosen = TrainingOptions(**options, watch=WatchOptions(**watch))
    history = train(session, chosen, progress=False)
    return history, make_report(session)


def measured_peak(world: World, num_steps: int, **arguments: Any) -> tuple[int | None, int]:
    """Train; return the measured peak of this rank's memory and the bytes of its parameters."""
    session = start(world, **arguments)
    for step in range(num_steps):
        session.train_step(step_data(session, step), step)
    return session.memory.measured_bytes, storage_bytes(session.reduction.parameters.values())


def peak_while_building(world: World, **arguments: Any) -> tuple[int, int]:
    """Build a session; return the most memory that this took, and what the rank holds after it."""
    with recorded_allocations() as changes:
        session = start(world, **arguments)
    return peak_of(changes), storage_bytes(session.tensors.values())


def training_on_a_full_disk(
    world: World, folder: str, victim: int, in_background: bool, **arguments: Any
) -> str:
    """Train with a checkpoint per step, one rank without room for files after step 2; return the error."""
    session = start(world, **arguments)
    options = {"epochs": 1, "evaluate": False, "checkpoint_folder": Path(folder), "keep": 1}
    options |= {"checkpoint_every": 1, "checkpoint_async": in_background}
    train(session, TrainingOptions(max_steps=2, **options), progress=False)  # type: ignore[arg-type]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == victim:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        train(session, TrainingOptions(max_steps=4, resume=True, **options), progress=False)  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "nothing"


def training_that_is_asked_to_stop(world: World, folder: str, **arguments: Any) -> tuple[Any, Any]:
    """Ask for a stop before training; return the history of it and of the rest."""
    session = start(world, **arguments)
    options = TrainingOptions(
        epochs=1, max_steps=4, evaluate=False, checkpoint_folder=Path(folder), checkpoint_every=2
    )
    if world.rank == 0:
        (Path(folder) / STOP_REQUEST).touch()
    first = train(session, options, progress=False)
    rest = replace(options, resume=True)
    return first, train(start(world, **arguments), rest, progress=False)


def buffers_made(world: World, num_steps: int, **arguments: Any) -> list[int]:
    """Return how many receive buffers this rank had made after each step."""
    session = start(world, **arguments)
    made = []
    for step in range(num_steps):
        session.train_step(step_data(session, step), step)
        made.append(session.executor.buffers_made)
    return made


def exchange_payloads(world: World, num_units: int) -> list[Any]:
    """Send from rank 0 to rank 1 over a static and a ragged border; return what went out or came in."""
    float_rows = TensorSpec(shape=(PerSample(per_sample=1), 4), dtype="float32", requires_grad=True)
    ragged = float_rows.replace(ragged=(0, 1))
    booleans = TensorSpec(shape=(3,), dtype="bool", requires_grad=False, ragged=(0,))
    number = NumberSpec(value=1, ragged=True)
    borders = [
        border_of(0, 1, float_rows, booleans.replace(ragged=())),
        border_of(0, 2, ragged, booleans, number),
    ]
    precision = Precision("float32", "float32")
    exchange = Exchange(borders, precision, world)
    seen = []
    messages = [
        (Message(Edge(0, border.target), unit, True, 0, 1), border)
        for unit in range(num_units)
        for border in borders
    ]
    random = torch.Generator().manual_seed(3)
    for message, border in messages:
        if world.rank == 1:
            exchange.post(message, 3)
        elif border.target == 2:
            rows = int(torch.randint(0, 3, (1,), generator=random))
            flags = torch.rand(rows, generator=random) > 0.5
            values: Any = torch.rand(rows, 5, generator=random), flags, 2.5 * rows
            seen.append(send(exchange, message, border, values, precision))
        else:
            values = torch.rand(3, 4, generator=random), torch.tensor([True, False, True])
            seen.append(send(exchange, message, border, values, precision))
    if world.rank == 1:
        for message, border in messages:
            payload = exchange.receive(message)
            assert payload.with_gradient == [True, False]
            unpacked = unpack_border(border, payload, 3, {})
            seen.append([v.tolist() if isinstance(v, torch.Tensor) else v for _, v in unpacked])
    with torch.no_grad():
        exchange.drain()
    return seen


def send(
    exchange: Exchange, message: Message, border: Border, values: Any, precision: Precision
) -> list[Any]:
    named = dict(zip((value.layer for value in border.values), values, strict=True))
    exchange.send(message, pack_border(border, named.__getitem__, 3, precision), 3)
    return [v.tolist() if isinstance(v, torch.Tensor) else v for v in values]


def border_of(source: int, target: int, *specs: Any) -> Border:
    values = tuple(NamedValue(layer=f"v{i}", spec=spec) for i, spec in enumerate(specs))
    return Border(source=source, target=target, values=values)


def exchange_with_another_plan(world: World) -> str:
    """Let the two ends of a border have different plans; return what the receiver says."""
    columns = 4 + world.rank
    spec = TensorSpec(
        shape=(PerSample(per_sample=1), columns), dtype="float32", requires_grad=False
    )
    border = border_of(0, 1, spec)
    precision = Precision("float32", "float32")
    exchange = Exchange([border], precision, world)
    message = Message(Edge(0, 1), 0, True, 0, 1)
    said = ""
    if world.rank == 1:
        try:
            exchange.post(message, 3)
            exchange.receive(message)
        except ValueMismatchError as error:
            said = str(error)
    else:
        send(exchange, message, border, [torch.zeros(3, 4)], precision)
    dist.barrier(group=world.control)
    return said


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.twice = torch.nn.Linear(6, 6)
        self.never = torch.nn.Linear(6, 6)
        self.last = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.tanh(self.first(x))
        result: torch.Tensor = self.last(self.twice(torch.tanh(self.twice(inside)))).square().sum()
        return result


def bucketed_sums(world: World) -> tuple[tuple[int, int] | None, float, bool]:
    """Sum the gradients of two units per rank, none on the last rank.

    Return how many sums had started before the first layer's backward and after the whole one, the largest
    difference to one process, and whether the gradients that nobody has are None.
    """
    torch.manual_seed(1)
    net, alone = Net().double(), Net().double()
    alone.load_state_dict(net.state_dict())
    shared = [
        ([name for name, _ in net.named_parameters()], world.group_of(range(world.size)), "all")
    ]
    sums = GradientSums(shared, dict(net.named_parameters()), {0: list(net.parameters())}, 64)
    units = torch.randn(2 * world.size - 2, 4, 6, dtype=torch.float64)
    for unit in units:
        alone(unit).backward()
    started = None
    if world.rank < world.size - 1:
        own = [Action(0, "B", 2 * world.rank), Action(0, "B", 2 * world.rank + 1)]
        around = sums.overlap(own)
        assert list(around) == own[1:]
        net(units[own[0].microbatch]).backward()
        loss, seen = net(units[own[1].microbatch]), []
        weight = net.first.weight
        weight.register_hook(lambda _: seen.append(sums.num_started))  # type: ignore[no-untyped-call]
        with around[own[1]]():
            loss.backward()
        started = seen[0], sums.num_started
    sums.finish()
    pairs = list(zip(net.parameters(), alone.parameters(), strict=True))
    grads = [(p.grad, q.grad) for p, q in pairs]
    differences = [float((a - b).abs().max()) for a, b in grads if a is not None and b is not None]
    is_none = [p.grad is None for p, _ in pairs] == [q.grad is None for _, q in pairs]
    return started, max(differences), is_none


def late_gradient(world: World) -> str:
    """Let a gradient grow after it was sent; return what is said."""
    linear = torch.nn.Linear(2, 2, bias=False)
    sums = GradientSums(
        [(["weight"], world.group_of(range(world.size)), "all")],
        dict(linear.named_parameters()),
        {0: list(linear.parameters())},
    )
    action = Action(0, "B", 0)
    try:
        with sums.overlap([action])[action]():
            for _ in range(2):
                linear(torch.ones(2)).sum().backward()
        sums.finish()
    except InputError as error:
        return str(error)
    return ""
