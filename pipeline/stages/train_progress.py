"""Watch a training: its curve to MLflow, its progress to the terminal."""

import time

from jobs.events import Event, MetricPoint, ShardsOpened, TrainingResumed, TrainingWarning
from jobs.tracking.uploader import MetricUploader
from pipeline.terminal import Reporter, training_line


class TrainingProgress:
    """Takes the workers' messages to the sender and to the screen.

    Args:
        sender: of the training's MLflow run.
        report: the terminal.
        steps: of the whole training.
    """

    def __init__(self, sender: MetricUploader, report: Reporter, steps: int) -> None:
        self._sender, self._report, self._steps = sender, report, steps
        self._clock, self._from = time.monotonic(), 0

    def __call__(self, messages: list[Event]) -> None:
        for message in messages:
            self._sender.take(message)
            self._show(message)
        for news in self._sender.news():
            self._report.line(f"{'':<9}{news}")

    def _show(self, message: Event) -> None:
        match message:
            case TrainingResumed():
                self._clock, self._from = time.monotonic(), message.step
                if message.step:
                    self._report.line(f"{'':<9}going on from step {message.step}")
            case ShardsOpened():
                self._report.progress(f"train    {message.shards} of {message.total} shards read and verified")
            case MetricPoint() if "train/loss" in message.metrics:
                pace = (time.monotonic() - self._clock) / max(1, message.step - self._from)
                self._report.progress(training_line(message.step, self._steps, message.metrics, pace))
            case TrainingWarning():
                self._report.line(f"{'':<9}step {message.step}: {message.text}")
