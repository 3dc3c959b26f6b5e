"""What the person at the terminal sees. Text goes to stderr where stdout is for JSON."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from jobs.cli import format_number
from pipeline.plan import Step
from pipeline.run_page import HEADLINE_METRICS


class Reporter:
    """Lines about the stages, and one line of progress that is rewritten in place.

    Progress appears on a terminal only: a file or a pipe gets a line at the start and end of each stage.

    Args:
        json_output: stdout belongs to the JSON line, so text goes to stderr.
    """

    def __init__(self, *, json_output: bool) -> None:
        self._stream = sys.stderr if json_output else sys.stdout
        self._live = sys.stderr.isatty()
        self._shown = 0
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def step(self, step: Step) -> None:
        """What is decided about a stage."""
        self._started = time.monotonic()
        verb = {"run": "running", "resume": "resuming", "skip": "skipped"}[step.action]
        self.line(f"{step.stage:<9}{verb}: {step.reason}")

    def done(self, stage: str, text: str) -> None:
        """The end of a stage."""
        self.line(f"{stage:<9}done in {duration(time.monotonic() - self._started)}: {text}")

    def progress(self, text: str) -> None:
        """Rewrite the line of progress."""
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be taken back
            print(f"\r{text:<{self._shown}}", end="", file=sys.stderr, flush=True)
            self._shown = len(text)

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._live and self._shown:
            print(f"\r{'':<{self._shown}}\r", end="", file=sys.stderr, flush=True)
        self._shown = 0


def duration(seconds: float) -> str:
    """`4.2 s`, `3:05 min` or `2:10:00 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def training_line(step: int, steps: int, metrics: Mapping[str, float], seconds_per_step: float) -> str:
    """Step, speed, loss and KL of each rung in nats per image, time left."""
    left = duration((steps - step) * seconds_per_step)
    kl = " ".join(f"{value:.1f}" for name, value in metrics.items() if name.startswith("train/kl_rung_"))
    return (
        f"train {step}/{steps}  {metrics['train/images_per_second']:.0f} images/s  "
        f"loss {metrics['train/loss']:.1f} nats  KL {kl}  {left} left"
    )


def score_table(scores: Mapping[str, Any]) -> str:
    """The scores that matter most in one line."""
    return ", ".join(f"{name} {format_number(scores[name])}" for name, *_ in HEADLINE_METRICS if name in scores)
