"""Output of the command for a person at a terminal. Text goes to stderr where stdout is reserved for JSON."""

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tqdm import tqdm

from jobs.cli import defer_signals, format_duration, format_number
from jobs.errors import printable
from jobs.evaluation.registry import headline
from pipeline.plan import Step
from pipeline.settings.schema import Config, format_value

_LINE_SECONDS = 30.0  # without a line, after which the progress is printed
_BAR = "{percentage:3.0f}% |{bar:20}| {desc}"


@dataclass(frozen=True)
class Progress:
    """Current work of a stage and the part that is done.

    Attributes:
        text: Description, such as `train 300/1500`; empty between two stages.
        done: Finished units of work, such as steps.
        total: All units, 0 if unknown.
        first: Units that were done at `start`.
        start: Time at which the work began, s.
    """

    text: str
    done: int = 0
    total: int = 0
    first: int = 0
    start: float = field(default_factory=time.monotonic)

    def describe(self) -> str:
        """Return the text with the elapsed and, where it can be estimated, the remaining time."""
        elapsed = time.monotonic() - self.start
        text = f"{self.text}  {format_duration(elapsed)}"
        if self.first < self.done <= self.total:
            remaining = elapsed * (self.total - self.done) / (self.done - self.first)
            text += f", {format_duration(remaining)} left"
        return text


class Reporter:
    """Prints lines about the stages, and the progress of the running stage.

    A terminal has a progress bar. A file or a pipe gets the progress as a line after 30 s without a line. `log_to`
    writes all lines to a log file too, with the progress lines. With `json_output`, stdout is reserved for JSON and
    text goes to stderr. A reporter is a context manager.
    """

    def __init__(self, *, json_output: bool) -> None:
        self._stream = sys.stderr if json_output else sys.stdout
        self._is_terminal = sys.stderr.isatty()
        self._lock = threading.RLock()  # the progress is also shown by a thread
        self._ended = threading.Event()
        self._bar: tqdm[NoReturn] | None = None
        self._log: Path | None = None
        self._unlogged: list[str] = []
        self._progress = Progress("")
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        threading.Thread(target=self._show_progress, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._clear()
        if error is not None:  # the command prints it
            with self._lock:
                self._print(f"stopped by {kind.__name__ if kind else ''}: {error}", log_only=True)

    def log_to(self, path: Path) -> None:
        """Append the lines that are in no log yet, and all later lines, to a file once its folder exists."""
        with self._lock:
            self._log = path
            self._write_log()

    def line(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            self._erase_bar()
            self._print(text)

    def _print(self, text: str, *, log_only: bool = False) -> None:
        text = printable(text)
        if not log_only:
            print(text, file=self._stream, flush=True)
        self._unlogged.append(text)
        self._write_log()
        self._printed = time.monotonic()

    def _write_log(self) -> None:
        if self._unlogged and self._log is not None and self._log.parent.is_dir():
            with suppress(OSError), self._log.open("a", encoding="utf-8") as file:  # because the disk may be full
                file.writelines(f"{line}\n" for line in self._unlogged)
            self._unlogged.clear()

    def step(self, step: Step) -> None:
        """Print what happens to a stage, and start its clock."""
        self._clear()
        self._started = time.monotonic()
        verb = {"run": "running", "resume": "resuming", "skip": "skipped"}[step.action]
        self.line(f"{step.stage:<9}{verb}: {step.reason}")

    def done(self, stage: str, text: str) -> None:
        """Print that a stage is done, its result and its duration."""
        self._clear()
        self.line(f"{stage:<9}done in {format_duration(time.monotonic() - self._started)}: {text}")

    def progress(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show the current work of the stage, and the part that is done if `total` is known."""
        # Deferred, because tqdm keeps its lock after an interrupt.
        with defer_signals(), self._lock:
            same = self._progress.total == total and self._progress.first <= done
            first, start = (self._progress.first, self._progress.start) if same else (done, time.monotonic())
            self._progress = Progress(text, done, total, first, start)
            if self._is_terminal:
                if self._bar is None:
                    self._bar = tqdm(file=sys.stderr, bar_format=_BAR, dynamic_ncols=True, leave=False)
                self._bar.total, self._bar.n = total or None, done
                self._bar.set_description_str(printable(self._progress.describe()))

    def _show_progress(self) -> None:
        """Show the elapsed time each second, and print the progress where no bar shows it."""
        while not self._ended.wait(1):
            with self._lock, suppress(OSError, ValueError):  # because the stream may be closed at the end
                if self._bar is not None:
                    self._bar.set_description_str(printable(self._progress.describe()))
                if self._progress.text and time.monotonic() - self._printed >= _LINE_SECONDS - 1:
                    self._print(self._progress.describe(), log_only=self._is_terminal)

    def _clear(self) -> None:
        """Erase the progress, whose clock starts again with the next work."""
        with self._lock:
            self._progress = Progress("")
            self._erase_bar()

    def _erase_bar(self) -> None:
        if self._bar is not None:
            with defer_signals():
                self._bar.close()
                self._bar = None


def training_line(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """Format step, throughput (images/s), loss and KL of each rung (nats per image)."""
    kl = " ".join(f"{value:.1f}" for name, value in metrics.items() if name.startswith("train/kl_rung_"))
    return (
        f"train    {step}/{steps}  {metrics['train/images_per_second']:.0f} images/s  "
        f"loss {metrics['train/loss']:.1f} nats  KL {kl}"
    )


def headline_line(metrics: Mapping[str, float]) -> str:
    """Format the headline metrics in one line, in the order of the headline table."""
    return ", ".join(f"{name} {format_number(value)}" for name, value in headline(metrics).items())


def start_lines(config: Config) -> list[str]:
    """Return lines that name the stages, model and data of a command, the folder of its results, and Ctrl-C."""
    model, dims = config.model.name, format_value(config.model.latent_dims)
    return [
        f"{', '.join(config.stage)}: model={model} model.latent_dims={dims} data={config.data.name}",
        f"results go to {config.workspace}; Ctrl-C stops, and the same command continues",
    ]


def summary_lines(config: Config, result: Mapping[str, Any]) -> list[str]:
    """Return the headline metrics as a table, the registered model, and how to open MLflow, from a command's result."""
    lines = [f"  {name:<28}{format_number(value):>10}" for name, value in headline(result["metrics"] or {}).items()]
    if result["model_uri"]:
        lines.append(f"model    {result['model_uri']}")
    if result["run_id"]:
        lines.append(
            f"MLflow   {config.tracking.uri or f'vlae ui workspace={config.workspace}'}  run {result['run_id']}"
        )
    return lines
