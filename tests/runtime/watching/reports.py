"""A run's report for tests of the page, with texts that would be harmful if they were not escaped."""

from stagewright.runtime.watching.metrics import EpochMetrics
from stagewright.runtime.watching.page import RunFile, RunHistory
from stagewright.runtime.watching.report import BorderReport, ReplicaReport, RunReport
from stagewright.runtime.watching.timeline import MeasuredTimeline, TimelineEvent

HARM = "<script>document.title='harmed'</script>\"'&"


def replica(stage: int, rank: int, device_type: str, slowdown: float | None) -> ReplicaReport:
    return ReplicaReport(
        stage=stage,
        rank=rank,
        device_type=device_type,
        emulated_slowdown=slowdown,
        predicted_forward_ms=2.0,
        measured_forward_ms=2.5,
        predicted_backward_ms=4.0,
        measured_backward_ms=4.5,
        predicted_reduce_ms=0.0,
        measured_reduce_ms=0.0,
        predicted_update_ms=0.5,
        measured_update_ms=None,
        measured_idle_share=0.25,
        measured_contention=1.1,
        predicted_peak_bytes=3 << 20,
        measured_peak_bytes=(4 << 20) if rank else None,
        predicted_backward_input_ms=1.5,
        measured_backward_input_ms=2.25 if rank else None,
        measured_backward_weight_ms=2.25 if rank else None,
    )


def run_file() -> RunFile:
    """Return a run of two stages, two micro-batches."""
    events = {
        0: [("0F0", 0.0, 2.5), ("0F1", 2.5, 5.0), ("0B0", 10.0, 14.5), ("0B1", 15.0, 19.5)],
        1: [("1F0", 2.6, 5.1), ("1B0", 5.1, 9.6), ("1F1", 9.6, 12.1), ("1B1", 12.1, 16.6)],
    }
    timeline = MeasuredTimeline(
        ranks=tuple(
            (
                *(TimelineEvent(what=w, start_ms=start, end_ms=end) for w, start, end in row),
                TimelineEvent(what="update", start_ms=19.5, end_ms=20.0),
            )
            for row in events.values()
        )
    )
    return RunFile(
        history=RunHistory(
            first_step=0,
            losses=(2.0, 1.5, None, 1.0),
            epochs=(
                EpochMetrics(step=4, epoch=0, train_loss=None, test_loss=0.5, test_metric=None),
            ),
        ),
        report=RunReport(
            task=HARM,
            schedule="zero-bubble",
            predicted_schedule="1f1b",
            dtype="float32",
            microbatch_size=4,
            num_microbatches=2,
            num_steps=4,
            predicted_step_ms=18.0,
            measured_step_ms=20.0,
            replicas=(replica(0, 0, HARM, 2.5), replica(1, 1, "fast", None)),
            borders=(
                BorderReport(
                    source=0,
                    target=1,
                    predicted_forward_bytes=1024,
                    measured_forward_bytes=1024.0,
                    predicted_backward_bytes=1024,
                    measured_backward_bytes=None,
                    forward_messages=2.0,
                    backward_messages=None,
                ),
            ),
            timeline=timeline,
        ),
    )
