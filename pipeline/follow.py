"""Watch a training: its curve to MLflow, its progress to the terminal."""

import time

from jobs.errors import UserError
from jobs.messages import Message, Opened, Point, Started
from jobs.tracking import CurveWriter
from pipeline.report import Reporter, training_line


class Follower:
    """Takes the workers' messages to the tracking server and to the screen.

    Args:
        curve: of the training's MLflow run.
        report: the terminal.
        steps: of the whole training.
    """

    def __init__(self, curve: CurveWriter, report: Reporter, steps: int) -> None:
        self._curve, self._report, self._steps = curve, report, steps
        self._clock, self._from = time.monotonic(), 0
        self._warned = False

    def __call__(self, messages: list[Message]) -> None:
        for message in messages:
            self._send(message)
            if isinstance(message, Started):
                self._clock, self._from = time.monotonic(), message.step
                if message.step:
                    self._report.line(f"{'':<9}going on from step {message.step}")
            elif isinstance(message, Opened):
                self._report.progress(f"train    {message.shards} of {message.total} shards read and verified")
            elif isinstance(message, Point) and "train/loss" in message.metrics:
                pace = (time.monotonic() - self._clock) / max(1, message.step - self._from)
                self._report.progress(training_line(message.step, self._steps, message.metrics, pace))

    def _send(self, message: Message) -> None:
        """Training goes on without MLflow; what it missed is sent with the next commit, or at the end."""
        try:
            self._curve.take(message)
        except UserError as error:
            if not self._warned:
                self._report.line(f"{'':<9}training goes on, its curve is kept: {error}")
            self._warned = True
