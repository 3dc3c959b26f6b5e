"""Learning curves on their way to MLflow, in threads of their own, because training must not wait for a server.

The history in the newest checkpoint is the only durable copy of a learning curve. Each upload asks MLflow for the last
step of each metric and sends what lies beyond, so every metric of every step reaches MLflow exactly once.
"""

import sys
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import UserError, first_line
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker, TrackingError, TrackingUnavailableError, last_steps, missing_points

_BATCH = 100  # points per call: about a thousand metrics
_MIN_PAUSE, _MAX_PAUSE = 1.0, 30.0  # seconds between two attempts while MLflow is unavailable
_EXIT_SECONDS = 3.0  # how long a stopped training waits for the upload


class MetricUploader:
    """Sends a training's learning curve and warnings to MLflow, which may be unavailable.

    Only points of committed steps are sent, those that a checkpoint contains. A training that is killed and resumed
    from its checkpoint computes the later steps again, so its learning curve in MLflow has no gap and no duplicate.
    Leaving the context manager waits a few seconds for the upload, unless `close` was called before.
    """

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id
        self._notices: SimpleQueue[str] = SimpleQueue()
        # Filled by `put`; the upload thread empties `_committed` and `_warnings`.
        self._lock = threading.Lock()
        self._computed: list[MetricPoint] = []  # of steps that may be computed again
        self._queued: dict[str, int] = {}  # last step of each metric that was ever in `_committed`
        self._committed: list[MetricPoint] = []  # to be sent
        self._warnings: dict[str, str] = {}  # tags to be set
        # These are used by the thread alone.
        self._resumed = self._deleted = False
        self._refused: dict[str, str] = {}  # reason of each metric that MLflow refused
        # Shared by both threads; the upload thread writes `_error`, `_complete` and `_progress_time`.
        self._error: TrackingError | None = None  # of the last attempt
        self._complete = False
        self._progress_time = time.monotonic()
        self._wake, self._closing, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(_EXIT_SECONDS)

    def put(self, event: Event) -> None:
        """Hand over an event of the training. This neither waits nor raises."""
        with self._lock:
            match event:
                case TrainingResumed(history=history, warnings=warnings):
                    self._computed = []
                    self._commit(history)
                    self._warnings |= {f"warning.{key}": text for key, text in warnings.items()}
                case MetricPoint():
                    self._computed.append(event)
                case CheckpointSaved(step):
                    self._commit([point for point in self._computed if point.step <= step])
                    self._computed = [point for point in self._computed if point.step > step]
                case TrainingWarning():
                    self._warnings[f"warning.{event.key}"] = event.text
        if isinstance(event, TrainingResumed | CheckpointSaved | TrainingWarning):
            self._wake.set()

    def drain_notices(self) -> list[str]:
        """Return the messages for the user since the last call."""
        notices = []
        while True:
            try:
                notices.append(self._notices.get_nowait())
            except Empty:
                return notices

    def close(self, timeout: float) -> None:
        """Wait until MLflow has everything; give up after `timeout` seconds without progress.

        Raises:
            TrackingError: MLflow failed. The checkpoint has what was not sent.
        """
        self._finish(timeout)
        if not self._complete:
            raise self._error or TrackingUnavailableError(self._tracker.uri, "no answer", 408)

    def _finish(self, timeout: float) -> None:
        if not self._closing.is_set():
            self._progress_time = time.monotonic()
            self._closing.set()
            self._wake.set()
        while self._thread.is_alive() and time.monotonic() < self._progress_time + timeout:
            self._thread.join(0.1)
        self._stop.set()

    def _run(self) -> None:
        pause = _MIN_PAUSE
        while not self._stop.is_set():
            last = self._closing.is_set()
            try:
                self._send()
            except TrackingUnavailableError as error:
                if self._error is None:
                    self._notices.put(f"training continues while MLflow is unavailable: {error.reason}")
                self._error = error
                # Closing cuts a long pause short, and then attempts are frequent.
                (self._stop if self._closing.is_set() else self._closing).wait(pause)
                pause = _MIN_PAUSE if self._closing.is_set() else min(2 * pause, _MAX_PAUSE)
                continue
            except TrackingError as error:
                self._notices.put(
                    f"training continues without MLflow, which refuses its learning curve: {error.reason}"
                )
                self._error = error
                return
            if last:
                self._complete = True
                return
            pause = _MIN_PAUSE
            self._wake.wait()
            self._wake.clear()

    def _commit(self, points: list[MetricPoint]) -> None:
        """Queue points. Steps that workers computed again are left out, because their first values stay."""
        for point in missing_points(points, self._queued):
            self._committed.append(point)
            self._queued |= dict.fromkeys(point.metrics, point.step)

    def _send(self) -> None:
        """Send what was committed and MLflow lacks, in the order of the steps."""
        if self._resumed and not self._committed and not self._warnings:
            return
        # Asked each time, because a call that failed may have arrived.
        run = self._tracker.get_run(self._run_id)
        if run is None:
            with self._lock:
                self._committed.clear()
                self._warnings.clear()
            if not self._deleted:
                self._notices.put(f"run {self._run_id} was deleted in MLflow, so its learning curve is no longer sent")
            self._deleted = True
        else:
            steps = last_steps(run)
            while batch := self._committed[:_BATCH]:
                points = missing_points(batch, steps | dict.fromkeys(self._refused, sys.maxsize))
                for name, reason in self._tracker.log_accepted(self._run_id, points).items():
                    self._refused[name] = reason
                    self._notices.put(f"MLflow refuses the metric {name}, which is left out: {reason}")
                with self._lock:  # `put` may have appended points meanwhile
                    del self._committed[: len(batch)]
                self._progress_time = time.monotonic()
            for key, text in dict(self._warnings).items():
                try:
                    self._tracker.tag(self._run_id, {key: text})
                except TrackingError as error:
                    if error.status != 400:
                        raise
                    self._notices.put(f"MLflow refuses the tag {key}, which is left out: {error.reason}")
                with self._lock:
                    if self._warnings.get(key) == text:
                        del self._warnings[key]
            if not self._resumed and not self._stop.is_set():  # after a stop the driver sets the final status
                self._tracker.resume_run(self._run_id)
                self._resumed = True
        if self._error is not None:
            self._notices.put("MLflow is available again and has the learning curve")
        self._error = None


class UploadRecovery:
    """Completes the learning curves of earlier trainings in MLflow from their newest checkpoints.

    A training that ended while MLflow was unavailable leaves points that only its checkpoint has. The work is done in a
    thread, because a command must not wait for a server that is unavailable again. A run that is being trained now may
    be among them: its uploader sends the same points, and MLflow drops duplicates.

    Args:
        tracker: Client of MLflow.
        checkpoints: Address of the checkpoints of each unfinished training, by the id of its run in this MLflow.
    """

    def __init__(self, tracker: Tracker, checkpoints: Mapping[str, str]) -> None:
        self._tracker, self._checkpoints = tracker, dict(checkpoints)
        self._notices: list[str] = []
        self._thread = threading.Thread(target=self._run, name="upload-recovery", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> list[str]:
        """Wait at most `timeout` seconds for the end, and return messages for the user."""
        self._thread.join(timeout)
        return list(self._notices)

    def _run(self) -> None:
        for run_id, url in self._checkpoints.items():
            try:
                self._complete(run_id, url)
            except TrackingUnavailableError as error:
                self._notices.append(f"learning curves of earlier runs were not completed: {error.reason}")
                return
            except UserError as error:
                self._notices.append(f"learning curve of run {run_id} was not completed: {first_line(error)}")

    def _complete(self, run_id: str, url: str) -> None:
        run = self._tracker.get_run(run_id)
        if run is None or run.info.status == "FINISHED":  # a status that is set after the curve is complete
            return
        history = CheckpointManager(url).latest_history()
        if points := missing_points(history.points, last_steps(run)):
            refused = self._tracker.log_accepted(run_id, points)
            without = f" without {', '.join(refused)}, which it refuses" if refused else ""
            self._notices.append(f"MLflow now has the rest of the learning curve of run {run_id}{without}")
        warnings = {f"warning.{key}": text for key, text in history.warnings.items()}
        if warnings.keys() - run.data.tags.keys():
            self._tracker.tag(run_id, warnings)
