"""From a training's messages to MLflow: through a spool, in threads of their own, so that nobody waits for a server."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from jobs.errors import AGAIN, UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker, TrackingError, TrackingUnavailableError
from jobs.tracking.spool import Entry, Spool, missing

_BATCH = 100  # entries: about a thousand metrics
_SHORTEST, _LONGEST = 1.0, 30.0  # pauses while MLflow is away, s
_LAST_WORDS = 3.0  # for what is under way when a training is stopped, s


def deliver(tracker: Tracker, spool: Spool, progress: Callable[[], None] = lambda: None) -> bool:
    """Send all that a spool holds and MLflow lacks, oldest first.

    Args:
        tracker: where to.
        spool: of a run of this MLflow.
        progress: called after each batch.

    Returns:
        False if the run was deleted in MLflow; then the spool is empty too.

    Raises:
        TrackingError: MLflow does not take it; what was not sent stays.
    """
    # Asked each time, as nobody knows what came of a call that failed. Steps rise within the spool.
    steps = tracker.last_steps(spool.run_id)
    if steps is None:
        spool.clear()
        return False
    while True:
        entries, end = spool.pending(_BATCH)
        if not entries:
            return True
        points = [entry for entry in entries if isinstance(entry, MetricPoint)]
        tracker.log_points(spool.run_id, missing(points, steps))
        warnings = [entry for entry in entries if isinstance(entry, TrainingWarning)]
        tracker.tag(spool.run_id, {f"warning.{warning.key}": warning.text for warning in warnings})
        spool.acknowledge(end)
        progress()


class MetricUploader:
    """Sends the points of committed steps only, so that a kill and a resume leave one continuous curve.

    One thread writes the spool and another talks to MLflow, so a server that hangs keeps nothing from the disk. As a
    context manager it ends with what a moment allows, unless it was closed before.

    Args:
        tracker: where the run is; it may be away.
        run_id: MLflow's.
        folder: of spools.
    """

    def __init__(self, tracker: Tracker, run_id: str, folder: Path) -> None:
        self._tracker, self._run_id = tracker, run_id
        self._path = folder / f"{run_id}.jsonl"
        self._inbox: SimpleQueue[Event | None] = SimpleQueue()
        self._news: SimpleQueue[str] = SimpleQueue()
        self._spool: Spool | None = None
        self._unwritten: list[Entry] = []
        self._more, self._written = threading.Event(), threading.Event()  # something, and all, is in the spool
        self._closing, self._stop = threading.Event(), threading.Event()  # it is to end well, and anyhow
        self._trouble: TrackingError | None = None  # of MLflow, now
        self._full: OSError | None = None  # why the spool cannot be written, now
        self._moved = time.monotonic()  # when something last got through
        self._resumed = self._deleted = self._arrived = False
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._sender = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._writer.start()
        self._sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(_LAST_WORDS)

    def take(self, message: Event) -> None:
        """Handle one message of the training; this neither waits nor raises."""
        self._inbox.put(message)

    def news(self) -> list[str]:
        """What the person should know since the last call."""
        found = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except Empty:
                return found

    def close(self, timeout: float) -> None:
        """Wait until all has arrived; `timeout` is how long to bear with an MLflow that takes nothing (s).

        Raises:
            UserError: it has not; what was committed is in the spool, or in the checkpoint.
        """
        self._end(timeout)
        if self._full is not None:
            raise UserError(f"{self._path} cannot be written ({self._full.strerror}): run {AGAIN} again to go on")
        if not self._arrived:
            raise self._trouble or TrackingUnavailableError(self._tracker.uri, "it does not answer")

    def _end(self, timeout: float) -> None:
        if not self._closing.is_set():
            self._inbox.put(None)
            self._moved = time.monotonic()
            self._closing.set()
        while self._sender.is_alive() and time.monotonic() < self._moved + timeout:
            self._sender.join(0.1)
        self._stop.set()

    def _write(self) -> None:
        """The thread that keeps what is committed."""
        computed: list[MetricPoint] = []  # of steps that may be computed again
        self._keep()
        while (message := self._inbox.get()) is not None:
            match message:
                case TrainingResumed():
                    computed = []
                    # Some of it may have been lost between a commit and the spool, which leaves out the rest.
                    self._unwritten += message.history
                case MetricPoint():
                    computed.append(message)
                case CheckpointSaved():
                    self._unwritten += [point for point in computed if point.step <= message.step]
                    computed = [point for point in computed if point.step > message.step]
                case TrainingWarning():
                    self._unwritten.append(message)
            self._keep()
        while not self._keep() and not self._stop.wait(_SHORTEST):
            pass
        self._written.set()
        self._more.set()

    def _keep(self) -> bool:
        """Write what was not written yet; whether there is nothing left."""
        try:
            if self._spool is None:
                self._spool = Spool.claim(self._path, self._tracker.home)
                if self._spool is None:  # a command that sends what was left here has it, for a moment
                    return False
                self._more.set()
            if self._unwritten:
                self._spool.append(self._unwritten)
                self._unwritten = []
                self._more.set()
        except OSError as error:
            if self._full is None:
                self._news.put(f"{self._path} cannot be written, which leaves the curve to the checkpoints: {error}")
            self._full = error
            return False
        self._full = None
        return True

    def _send(self) -> None:
        """The thread that talks to MLflow."""
        pause = _SHORTEST
        while not self._stop.is_set():
            last = self._written.is_set()
            try:
                self._deliver()
            except (TrackingError, OSError) as error:
                trouble = (
                    error if isinstance(error, TrackingError) else TrackingUnavailableError(str(self._path), str(error))
                )
                if self._trouble is None:
                    self._news.put(
                        f"training goes on without MLflow, its curve waits in {self._path}: {trouble.reason}"
                    )
                self._trouble = trouble
                # Once it is to end, it asks once more at once, and then often.
                (self._stop if self._closing.is_set() else self._closing).wait(pause)
                pause = _SHORTEST if self._closing.is_set() else min(2 * pause, _LONGEST)
                continue
            if last:
                self._arrived = self._spool is not None
                break
            pause = _SHORTEST
            self._more.wait()
            self._more.clear()
        self._writer.join()
        if self._spool is not None:
            self._spool.close()

    def _deliver(self) -> None:
        if self._spool is None:
            return
        if not deliver(self._tracker, self._spool, self._progress):
            if not self._deleted:
                self._news.put(f"the run {self._run_id} was deleted in MLflow: its curve is sent there no more")
            self._deleted = True
        elif not self._resumed and not self._stop.is_set():  # else somebody has said how it ended
            self._tracker.resume_run(self._run_id)
            self._resumed = True
        if self._trouble is not None:
            self._news.put("MLflow is back, and the curve has arrived")
        self._trouble = None

    def _progress(self) -> None:
        self._moved = time.monotonic()


class UploadRecovery:
    """Sends what belongs to this MLflow, in a thread of its own: nobody waits for a server that is away again.

    Args:
        tracker: where to.
        folder: of spools; it may be missing.
    """

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self._tracker, self._paths = tracker, sorted(folder.glob("*.jsonl"))
        self._news: list[str] = []
        self._thread = threading.Thread(target=self._send, name="leftovers", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> list[str]:
        """Wait for the end, so many seconds at most; what the person should know."""
        self._thread.join(timeout)
        return list(self._news)

    def _send(self) -> None:
        for path in self._paths:
            try:
                spool = Spool.claim(path)
            except OSError as error:
                self._news.append(f"{path} cannot be read: {error.strerror}")
                continue
            if spool is None:  # whose training is under way
                continue
            try:
                if spool.empty or spool.home.get("uri") != self._tracker.config.uri:
                    continue
                if deliver(self._tracker, spool):
                    self._news.append(f"the rest of an earlier curve has arrived in MLflow: run {spool.run_id}")
                else:
                    self._news.append(f"{path} is dropped: its run was deleted in MLflow")
            except TrackingError as error:
                self._news.append(f"earlier curves wait still in {path.parent}: {error.reason}")
                return
            finally:
                spool.close()
