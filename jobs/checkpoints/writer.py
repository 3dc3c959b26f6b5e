"""Writes checkpoints in a background thread while training continues."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from jobs.checkpoints.format import Snapshot
from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import UnavailableError
from jobs.events import CheckpointSaved, Event, TrainingWarning

_MAX_OUTAGE_SECONDS = 600.0
_RETRY_SECONDS = 1.0  # grows with the outage, up to the next
_MAX_RETRY_SECONDS = 15.0
_MAX_STALL_SECONDS = 20.0  # that training waits for the previous snapshot: a store may not answer for minutes
_GRACE_SECONDS = 20.0  # that an error in training waits for the last snapshot


class CheckpointWriter:
    """A thread that writes one snapshot after the other and prunes old checkpoints.

    While the store is unavailable training continues, and a newer snapshot replaces the waiting one.

    Args:
        manager: Checkpoints of the training.
        keep: Number of newest checkpoints to keep, besides the best.
        emit: Receives an event for each saved checkpoint, called in the thread.
    """

    def __init__(self, manager: CheckpointManager, keep: int, emit: Callable[[Event], None]) -> None:
        self._manager, self._keep, self._emit = manager, keep, emit
        self._waiting: Snapshot | None = None  # handed over and not yet saved
        self._changed = threading.Condition()
        self._unavailable_since: float | None = None
        self._error: BaseException | None = None
        self._closing = self._abandon = False  # abandon: give up a snapshot that waits for the store
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the last snapshot is saved; after an error, not for an unavailable store."""
        with self._changed:
            self._closing, self._abandon = True, kind is not None
            self._changed.notify_all()
        if kind is None:
            self._thread.join()
            self.check()
        else:  # a thread that waits for its store's answer ends with the process
            self._thread.join(_RETRY_SECONDS if self._unavailable_since else _GRACE_SECONDS)

    def check(self) -> None:
        """Raise the error of the thread if writing failed for good: a UserError where the user can fix the cause."""
        if self._error is not None:
            raise self._error

    def save(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot once the previous one is saved or waits for its store, or after a short stall."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._waiting or self._unavailable_since or self._error, _MAX_STALL_SECONDS
            )
            self.check()
            self._waiting = snapshot
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every snapshot is saved."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._error)
        self.check()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                    snapshot = self._waiting
                if snapshot is None:
                    return
                try:
                    self._manager.save(snapshot)
                except UnavailableError as error:
                    self._wait_for_store(snapshot, error)
                else:
                    self._finish(snapshot)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _finish(self, snapshot: Snapshot) -> None:
        self._unavailable_since = None
        self._emit(CheckpointSaved(snapshot.step))
        # The next checkpoint prunes what this one could not. Saving again would first remove this one.
        with suppress(UnavailableError):
            self._manager.prune(self._keep, snapshot.step)
        with self._changed:
            if self._waiting is snapshot:  # and not a newer one
                self._waiting = None
            self._changed.notify_all()

    def _wait_for_store(self, snapshot: Snapshot, error: UnavailableError) -> None:
        now = time.monotonic()
        with self._changed:
            if self._unavailable_since is None:
                self._unavailable_since = now
                text = f"training continues while its checkpoint waits for the store: {error}"
                self._emit(TrainingWarning(snapshot.step, "checkpoint_store", text))
            outage = now - self._unavailable_since
            if outage > _MAX_OUTAGE_SECONDS:
                raise error
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._abandon, min(_MAX_RETRY_SECONDS, _RETRY_SECONDS + outage / 4)):
                self._waiting = None
