"""Output of the command for a person at a terminal. Text goes to stderr where stdout is reserved for JSON."""

import shutil
import sys
import time
from collections.abc import Mapping

from jobs.cli import format_duration, format_number
from jobs.evaluation.registry import headline
from pipeline.plan import Step


class Reporter:
    """Prints lines about the stages, and a progress line that is rewritten in place.

    Progress is printed on a terminal only. A file or a pipe gets a line at the start and the end of each stage.
    With `json_output`, stdout is reserved for JSON and text goes to stderr.
    """

    def __init__(self, *, json_output: bool) -> None:
        self._stream = sys.stderr if json_output else sys.stdout
        self._is_terminal = sys.stderr.isatty()
        self._progress_width = 0
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def step(self, step: Step) -> None:
        """Print what happens to a stage, and start its clock."""
        self._started = time.monotonic()
        verb = {"run": "running", "resume": "resuming", "skip": "skipped"}[step.action]
        self.line(f"{step.stage:<9}{verb}: {step.reason}")

    def done(self, stage: str, text: str) -> None:
        """Print that a stage is done, its result and its duration."""
        self.line(f"{stage:<9}done in {format_duration(time.monotonic() - self._started)}: {text}")

    def progress(self, text: str) -> None:
        """Replace the progress line, cut at the width of the terminal."""
        if self._is_terminal:
            text = text[: shutil.get_terminal_size().columns - 1]  # a carriage return cannot undo a wrapped line
            print(f"\r{text:<{self._progress_width}}", end="", file=sys.stderr, flush=True)
            self._progress_width = len(text)

    def clear(self) -> None:
        """Erase the progress line."""
        if self._is_terminal and self._progress_width:
            print(f"\r{'':<{self._progress_width}}\r", end="", file=sys.stderr, flush=True)
        self._progress_width = 0


def training_line(step: int, steps: int, metrics: Mapping[str, float], seconds_per_step: float) -> str:
    """Format step, throughput (images/s), loss and KL of each rung (nats per image), and the remaining time."""
    remaining = format_duration((steps - step) * seconds_per_step)
    kl = " ".join(f"{value:.1f}" for name, value in metrics.items() if name.startswith("train/kl_rung_"))
    return (
        f"train {step}/{steps}  {metrics['train/images_per_second']:.0f} images/s  "
        f"loss {metrics['train/loss']:.1f} nats  KL {kl}  {remaining} left"
    )


def headline_line(metrics: Mapping[str, float]) -> str:
    """Format the headline metrics in one line, in the order of the headline table."""
    return ", ".join(f"{name} {format_number(value)}" for name, value in headline(metrics).items())
