"""Chaos: real trainings whose ranks are killed again and again, resumed each time, end as undisturbed ones.

Run with: make chaos, or python benchmarks/chaos.py --kills 200. Every attempt draws a rank, a fault, and
when: at one of the rank's instructions (any action, send, receive, update or checkpoint), or after a random
time, which may be before the first step. The other ranks must end by themselves, non-zero and with one line
that says where they were; the next attempt resumes. A training that is through must have the losses of every
step, and the weights, bitwise as without faults. Ranks are forked from this process, which has torch already.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from stagewright.plan import Plan
from stagewright.runtime import command as train_command
from stagewright.runtime.ranks.whereabouts import Whereabouts
from stagewright.runtime.session import Session
from stagewright.runtime.storage.folders import newest_step
from stagewright.runtime.training.batches import MicrobatchData
from stagewright.task import load_task

ROOT = Path(__file__).resolve().parent.parent
TASK = str(ROOT / "models" / "mlp.py")
NUM_STEPS = 24
CHECKPOINT_EVERY = 3
TIMEOUT_S = 5.0
GRACE_S = 2 * TIMEOUT_S
"""Ranks that are still there so long after a fault at a random time are told to stop."""
MOST_WAIT_S = 60.0
"""A rank that is still there so long after a fault hangs."""
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGABRT": signal.SIGABRT}
FAULTS = (*SIGNALS, "exception", "full disk", "closed network")
MOST_FILE_BYTES = 20_000
"""What a rank on a "full disk" may write into a file: what this program notes, but no checkpoint."""


@dataclass(frozen=True)
class Fault:
    """What happens to one rank of one attempt, and when."""

    kind: str
    rank: int
    instruction: int | None
    """At this one of the rank's instructions; None: after delay_s, which only signals can."""
    delay_s: float


@dataclass
class Outcome:
    """What the attempts with one kind of fault gave."""

    attempts: int = 0
    at_instructions: int = 0
    told_to_stop: int = 0
    """Attempts in which ranks were still waiting for the start of others, so that the launcher ended them."""
    seconds: list[float] = field(default_factory=list)
    """From the fault until the last rank has ended."""


class ArmedWhereabouts(Whereabouts):
    """Lets a fault happen at a rank's n-th instruction or phase."""

    fault: Fault | None = None
    mark = Path()
    """Written when the fault happens."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        fault = self.fault
        if name == "instruction" and fault is not None and fault.instruction is not None:
            count = self.__dict__.get("count", 0) + 1
            self.__dict__["count"] = count
            if count == fault.instruction:
                self.mark.write_text(str(time.monotonic()))
                strike(fault.kind)


def strike(kind: str) -> None:
    """Let a fault happen to this process."""
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
    elif kind == "exception":
        raise ZeroDivisionError("a fault that the chaos test planted")
    elif kind == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, resource.RLIM_INFINITY))
    else:
        close_connections()


def close_connections() -> None:
    """Shut down every connection of this process, as a network that closes does; listening sockets stay."""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                connection.getpeername()
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # no connection
            continue


class Attempt:
    """One start of all ranks."""

    def __init__(
        self, options: Sequence[str], num_ranks: int, folder: Path, fault: Fault | None
    ) -> None:
        self.fault, self.folder = fault, folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._options, self._size = list(options), num_ranks
        self.started_s = time.monotonic()
        self.pids = [self._fork(rank) for rank in range(num_ranks)]
        self.statuses: dict[int, int] = {}
        self.ended_s: dict[int, float] = {}
        self.told: list[int] = []
        """Ranks that were told to stop, as torchrun does: before the first step ranks are patient."""

    def _fork(self, rank: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            handle = os.open(self.folder / f"rank{rank}.err", os.O_WRONLY | os.O_CREAT)
            os.dup2(handle, 2)
            os.dup2(handle, 1)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self._size}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._port}
            os.environ.update({name: str(value) for name, value in (place | address).items()})
            if self.fault is not None and self.fault.rank == rank:
                ArmedWhereabouts.fault, ArmedWhereabouts.mark = self.fault, self.folder / "struck"
                vars(train_command)["Whereabouts"] = ArmedWhereabouts
            record_losses(self.folder / f"rank{rank}.losses")
            status = train_command.main(self._options)
        finally:
            os._exit(status)

    @property
    def struck_s(self) -> float | None:
        """When the fault happened."""
        mark = self.folder / "struck"
        text = mark.read_text() if mark.exists() else ""
        return float(text) if text else None

    def run(self) -> None:
        """Wait for all ranks; deliver a timed fault; end a victim that only stopped."""
        fault = self.fault
        while len(self.statuses) < self._size:
            time.sleep(0.02)
            now_s = time.monotonic()
            self._reap(now_s)
            if fault is None:
                continue
            is_due = fault.instruction is None and now_s - self.started_s > fault.delay_s
            if is_due and self.struck_s is None and fault.rank not in self.statuses:
                (self.folder / "struck").write_text(str(now_s))
                os.kill(self.pids[fault.rank], SIGNALS[fault.kind])
            others = set(range(self._size)) - {fault.rank}
            if fault.kind == "SIGSTOP" and others <= set(self.statuses):
                if fault.rank not in self.statuses:
                    os.kill(self.pids[fault.rank], signal.SIGKILL)
                continue
            struck_s = self.struck_s
            waited_s = 0.0 if struck_s is None else now_s - struck_s
            if fault.instruction is None and waited_s > GRACE_S and not self.told:
                self.told = [rank for rank in range(self._size) if rank not in self.statuses]
                for rank in self.told:
                    os.kill(self.pids[rank], signal.SIGTERM)
            if waited_s > MOST_WAIT_S:
                self._give_up()

    def _reap(self, now_s: float) -> None:
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
                    self.ended_s[rank] = now_s

    def _give_up(self) -> None:
        hanging = [rank for rank in range(self._size) if rank not in self.statuses]
        for rank in hanging:
            os.kill(self.pids[rank], signal.SIGKILL)
        sys.exit(f"chaos: ranks {hanging} hang after {self.fault}; see {self.folder}")

    def check(self) -> list[str]:
        """Return the last lines of the ranks that ended because of the fault."""
        assert self.fault is not None
        lines = []
        for rank, status in sorted(self.statuses.items()):
            if rank == self.fault.rank and self.fault.kind in SIGNALS:
                continue
            if rank in self.told and status == -signal.SIGTERM:
                continue  # it had not even read its options
            said = (self.folder / f"rank{rank}.err").read_text().splitlines()
            named = [line for line in said if line.startswith(f"stagewright train: rank {rank}")]
            if status == 0 or len(named) != 1:
                sys.exit(
                    f"chaos: rank {rank} ended with {status} and said {said[-3:]}; {self.fault}"
                )
            lines += named
        return lines

    def losses(self) -> dict[tuple[int, int], str]:
        """Return the losses by step and micro-batch, exactly, of every step that a rank finished."""
        found: dict[tuple[int, int], str] = {}
        for rank in range(self._size):
            path = self.folder / f"rank{rank}.losses"
            for line in path.read_text().splitlines() if path.exists() else ():
                try:
                    step, losses = json.loads(line)
                except json.JSONDecodeError:  # the rank was killed while it wrote
                    continue
                found |= {(step, int(microbatch)): value for microbatch, value in losses.items()}
        return found


def record_losses(path: Path) -> None:
    """Make this process write each step's losses to a file, exactly."""
    run_step = Session.train_step

    def train_step(self: Session, data: MicrobatchData, step: int, *rest: Any) -> dict[int, float]:
        losses = run_step(self, data, step, *rest)
        with path.open("a") as file:
            file.write(json.dumps([step, {m: v.hex() for m, v in losses.items()}]) + "\n")
        return losses

    Session.train_step = train_step  # type: ignore[method-assign,assignment]


class Chaos:
    """All attempts."""

    def __init__(self, package: Path, task: str, folder: Path, seed: int) -> None:
        self.plan = Plan.load(package / "plan.json")
        self._folder, self._random = folder, random.Random(seed)
        self._options = [str(package), "--task", task, "--timeout", str(TIMEOUT_S), "--resume"]
        self._options += ["--epochs", "9", "--max-steps", str(NUM_STEPS), "--no-evaluation"]
        self._options += ["--optimizer", "adamw", "--checkpoint-every", str(CHECKPOINT_EVERY)]
        self.outcomes: dict[str, Outcome] = defaultdict(Outcome)
        self.examples: list[str] = []
        self.num_kills = self.num_trainings = self._num_attempts = 0

    def attempt(self, training: Path, fault: Fault | None) -> Attempt:
        self._num_attempts += 1
        options = ["--checkpoint", str(training / "checkpoints")]
        options += ["--output", str(training / "weights.safetensors")]
        if self._random.random() < 0.5:
            options.append("--checkpoint-async")
        folder = self._folder / f"attempt{self._num_attempts}"
        attempt = Attempt([*self._options, *options], self.plan.num_ranks, folder, fault)
        attempt.run()
        return attempt

    def run(self, kills: int) -> None:
        """Train until so many ranks were killed, and compare every training that got through."""
        undisturbed = self._folder / "undisturbed"
        reference = self.attempt(undisturbed, None)
        if any(reference.statuses.values()):
            sys.exit(f"chaos: the undisturbed training failed; see {reference.folder}")
        wanted = reference.losses()
        weights = load_file(undisturbed / "weights.safetensors")
        while self.num_kills < kills:
            self.num_trainings += 1
            training = self._folder / f"training{self.num_trainings}"
            found = self._train_through(training, kills)
            different = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
            trained = load_file(training / "weights.safetensors")
            same_weights = all(trained[name].equal(weights[name]) for name in weights)
            if different or not same_weights:
                sys.exit(
                    f"chaos: training {self.num_trainings} differs in the losses of {different}, weights "
                    f"{'equal' if same_weights else 'differ'}; see {training}"
                )
            print(
                f"{self.num_kills} kills, {self.num_trainings} trainings through", file=sys.stderr
            )
            shutil.rmtree(training)

    def _train_through(self, training: Path, kills: int) -> dict[tuple[int, int], str]:
        """Start a training again and again until it is through; return all its losses."""
        found: dict[tuple[int, int], str] = {}
        while True:
            attempt = self.attempt(training, self._draw() if self.num_kills < kills else None)
            for key, value in attempt.losses().items():
                if found.setdefault(key, value) != value:
                    sys.exit(f"chaos: {key} differs between attempts; see {attempt.folder}")
            if not any(attempt.statuses.values()):
                return found
            self._count(attempt, is_done=newest_step(training / "checkpoints") == NUM_STEPS)
            shutil.rmtree(attempt.folder)

    def _draw(self) -> Fault:
        kind = self._random.choice(FAULTS)
        rank = self._random.randrange(self.plan.num_ranks)
        # Before the first step ranks wait ten minutes for one another, so no rank is stopped then.
        is_timed = kind in ("SIGKILL", "SIGABRT") and self._random.random() < 0.5
        instruction = None if is_timed else self._random.randint(1, 250)
        return Fault(kind, rank, instruction, self._random.uniform(0, 2.5))

    def _count(self, attempt: Attempt, *, is_done: bool) -> None:
        struck_s, fault = attempt.struck_s, attempt.fault
        if struck_s is None or fault is None:
            sys.exit(f"chaos: an attempt failed without a fault; see {attempt.folder}")
        lines = [] if is_done else attempt.check()  # the others may be through with their work
        self.num_kills += 1
        outcome = self.outcomes[fault.kind]
        outcome.attempts += 1
        outcome.at_instructions += fault.instruction is not None
        outcome.told_to_stop += bool(attempt.told)
        outcome.seconds.append(max(attempt.ended_s.values()) - struck_s)
        if outcome.attempts == 1:
            self.examples += lines[:1]


SHAPE = ("--batch-size", "32", "--microbatch-size", "8", "--cuts", "2", "--replicas", "2,1")


def make_package(folder: Path) -> Path:
    """Profile, plan and generate the model in two stages, the first with two replicas."""
    (folder / "cluster.toml").write_text(
        'format = "stagewright.cluster"\nversion = 2\n[device_types.cpu]\nmemory_bytes = 1_000_000_000\n'
        'profile = "cpu.json"\n[[servers]]\nname = "here"\ndevices = [{ type = "cpu", count = 3 }]\n'
        "[links]\ninside_server = { bandwidth_bytes_per_s = 1.0e9, latency_ms = 0.1 }\n"
    )
    plan, graph = str(folder / "plan.json"), str(folder / "cpu.json")
    for words in (
        ("profile", TASK, "--device-type", "cpu", "-b", "8", "-o", graph),
        ("optimize", str(folder / "cluster.toml"), "-o", plan, *SHAPE),
        ("generate", plan, "-o", str(folder / "stages")),
    ):
        command = [sys.executable, "-m", "stagewright.cli", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "stages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", type=Path, help="stage modules (default: of models/mlp.py)")
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stagewright-chaos-"))
    package = args.package or make_package(folder)
    load_task(args.task).call("dataset", "train")  # what the ranks import is imported once, here
    chaos = Chaos(package, args.task, folder, args.seed)
    chaos.run(args.kills)
    shutil.rmtree(folder)
    if args.json:
        outcomes = {kind: asdict(outcome) for kind, outcome in sorted(chaos.outcomes.items())}
        print(json.dumps({"kills": chaos.num_kills, "faults": outcomes}))
    else:
        print_table(chaos)


def print_table(chaos: Chaos) -> None:
    print(
        f"{chaos.num_kills} faults in {chaos.num_trainings} trainings of {NUM_STEPS} steps on "
        f"{chaos.plan.num_ranks} ranks, --timeout {TIMEOUT_S:.0f}: all resumed; losses of every step and "
        "weights bitwise equal to the undisturbed training's"
    )
    print(
        "fault            number   at an instruction   told to stop   all ended after (s, measured)"
    )
    for kind, outcome in sorted(chaos.outcomes.items()):
        print(
            f"{kind:16} {outcome.attempts:6} {outcome.at_instructions:19} {outcome.told_to_stop:14}   "
            f"median {statistics.median(outcome.seconds):5.2f}, longest {max(outcome.seconds):5.2f}"
        )
    print("what ranks said, for example:", *chaos.examples, sep="\n  ")


if __name__ == "__main__":
    main()
