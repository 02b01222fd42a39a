"""Where metrics go: a progress bar, lines for logs, a file of JSON lines, TensorBoard."""

import importlib.util
import sys
from pathlib import Path
from typing import Protocol, TextIO

import msgspec
from tqdm import tqdm

from stagewright.document import InputError, demand_writable, read_bytes, write_atomically

from .metrics import EpochMetrics, StepMetrics

Event = StepMetrics | EpochMetrics


class Writer(Protocol):
    """Takes events in the order of the steps."""

    def write(self, event: Event) -> None: ...

    def flush(self) -> None:
        """Let readers see what was written; called after every few steps."""

    def close(self) -> None: ...


def step_text(event: StepMetrics) -> str:
    """Return what matters of a step, for people."""
    norm = "" if event.gradient_norm is None else f", gradient norm {event.gradient_norm:.3g}"
    return (
        f"loss {event.loss:.4f}, {event.samples_per_s:.0f} samples/s, "
        f"bubble {event.bubble_share:.0%}{norm}"
    )


def epoch_text(event: EpochMetrics) -> str:
    """Return one line about an epoch."""
    text = f"epoch {event.epoch + 1}: train loss {_number(event.train_loss)}"
    if event.test_loss is not None:
        text += f", held-out loss {_number(event.test_loss)}"
    if event.test_metric is not None:
        text += f", held-out metric {_number(event.test_metric)}"
    return text


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


class ProgressBar:
    """A bar on a terminal: one step at a time, figures of the latest step that was gathered."""

    def __init__(self, num_steps: int, first_step: int) -> None:
        self.bar = tqdm(total=num_steps, initial=first_step, unit="step", file=sys.stderr)

    def write(self, event: Event) -> None:
        text = step_text(event) if isinstance(event, StepMetrics) else epoch_text(event)
        self.bar.set_postfix_str(text, refresh=False)

    def flush(self) -> None:
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


class ProgressLines:
    """One line each time that steps are gathered, and per epoch: for logs."""

    def __init__(self, num_steps: int, stream: TextIO) -> None:
        self._num_steps = num_steps
        self._stream = stream
        self._latest: StepMetrics | None = None

    def write(self, event: Event) -> None:
        if isinstance(event, StepMetrics):
            self._latest = event
            return
        self.flush()
        print(epoch_text(event), file=self._stream, flush=True)

    def flush(self) -> None:
        if self._latest is not None:
            text = f"step {self._latest.step}/{self._num_steps}: {step_text(self._latest)}"
            print(text, file=self._stream, flush=True)
        self._latest = None

    def close(self) -> None:
        self.flush()


class JsonLines:
    """One JSON object per line (docs/formats.md). A number that is not finite is null."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Begin a file; of an older one stay the steps that a resumed run does not repeat.

        Raises:
            InputError: the file cannot be written, or the older one has a line that is no metrics.
        """
        demand_writable(path)
        write_atomically(path, _lines_until(path, first_step) if first_step else b"")
        self._file = path.open("ab")

    def write(self, event: Event) -> None:
        name = "step" if isinstance(event, StepMetrics) else "epoch"
        content = {"event": name} | msgspec.to_builtins(event)
        self._file.write(msgspec.json.encode(content) + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines_until(path: Path, step: int) -> bytes:
    """Return the lines of the first steps of a metrics file; nothing if there is none."""
    if not path.exists():
        return b""
    kept = []
    lines = read_bytes(path).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith(b"\n"):
            break  # a run that was killed in the middle of a line
        try:
            found = msgspec.json.decode(line)["step"]
        except (msgspec.DecodeError, KeyError, TypeError):
            found = None
        if type(found) is not int:
            raise InputError(
                f"{path}: line {number} is no metrics of a step; name another file for --metrics"
            )
        if found <= step:
            kept.append(line)
    return b"".join(kept)


class TensorBoard:
    """Scalars by step: train/... of every step, epoch/... of every epoch."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, event: Event) -> None:
        names = [name for name in event.__struct_fields__ if name not in ("step", "epoch")]
        for name in names:
            value = getattr(event, name)
            if value is not None:
                tag = f"{'train' if isinstance(event, StepMetrics) else 'epoch'}/{name}"
                self._writer.add_scalar(tag, float(value), event.step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def demand_tensorboard() -> None:
    """Raise InputError if TensorBoard's package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard: the package tensorboard is not installed; install it "
            "(pip install 'stagewright[tensorboard]') or write --metrics FILE"
        )
