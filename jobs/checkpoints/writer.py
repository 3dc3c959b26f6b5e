"""Writes checkpoints while training goes on, and keeps the newest and the best."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from jobs.checkpoints.manager import Checkpoints
from jobs.errors import UnavailableError
from jobs.events import CheckpointSaved, Event, TrainingWarning
from jobs.training.snapshot import Snapshot

_PATIENCE = 600.0  # seconds that a store may be away
_PAUSE = 1.0  # seconds before the next try, more the longer it is away, up to the longest
_LONGEST_PAUSE = 15.0
_STALL = 20.0  # that training waits for the snapshot before, at most: a store may be silent for minutes
_GRACE = 20.0  # that an error in training waits for the last snapshot, at most


class CheckpointWriter:
    """A thread that writes one snapshot after the other.

    While a store is away training goes on: a newer snapshot takes the place of the one that waits.

    Args:
        place: of the checkpoints.
        keep: newest checkpoints to keep, beside the best.
        post: is told of each checkpoint that is published.
    """

    def __init__(self, place: Checkpoints, keep: int, post: Callable[[Event], None]) -> None:
        self._place, self._keep, self._post = place, keep, post
        self._scores = place.scores()
        self._there = set(place.folders())  # steps of which the place has anything; nobody else writes to it
        self._waiting: Snapshot | None = None  # handed over, and not yet published
        self._changed = threading.Condition()
        self._away_since: float | None = None
        self._error: BaseException | None = None
        self._closing = self._leaving = False  # leaving: whatever waits for a store is given up
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the last snapshot is published; after an error, not for a store that is away."""
        with self._changed:
            self._closing, self._leaving = True, kind is not None
            self._changed.notify_all()
        if kind is None:
            self._thread.join()
            self.check()
        else:  # a thread that waits for an answer of its store ends with that, or with the process
            self._thread.join(_PAUSE if self._away_since else _GRACE)

    def check(self) -> None:
        """See that writing goes well.

        Raises:
            UserError: it does not, and waiting does not help.
        """
        if self._error is not None:
            raise self._error

    def save(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot, once the one before is published or waits for its store; soon in any case.

        Raises:
            UserError: as `check`.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._away_since or self._error, _STALL)
            self.check()
            self._waiting = snapshot
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is published.

        Raises:
            UserError: as `check`.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._error)
        self.check()

    def _work(self) -> None:
        try:
            while (snapshot := self._next()) is not None:
                self._try(snapshot)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting

    def _try(self, snapshot: Snapshot) -> None:
        """Publish a snapshot, or wait a while if the store is away."""
        try:
            self._publish(snapshot)
        except UnavailableError as error:
            self._wait(snapshot, error)
            return
        self._away_since = None
        self._post(CheckpointSaved(snapshot.step))
        with suppress(
            UnavailableError
        ):  # it is done with the next one; publishing this one again would take it away first
            self._tidy(snapshot)
        with self._changed:
            if self._waiting is snapshot:  # and not a newer one
                self._waiting = None
            self._changed.notify_all()

    def _wait(self, snapshot: Snapshot, error: UnavailableError) -> None:
        now = time.monotonic()
        with self._changed:
            if self._away_since is None:
                self._away_since = now
                text = f"training goes on, its checkpoint waits for the store: {error}"
                self._post(TrainingWarning(snapshot.step, "checkpoint_store", text))
            away = now - self._away_since
            if away > _PATIENCE:
                raise error
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._leaving, min(_LONGEST_PAUSE, _PAUSE + away / 4)):
                self._waiting = None

    def _publish(self, snapshot: Snapshot) -> None:
        self._there.add(snapshot.step)
        with self._place.scratch() as scratch:
            folder = scratch / f"step-{snapshot.step:08d}"
            folder.mkdir()
            snapshot.write(folder)
            self._place.publish(folder)
        if not self._place.complete(snapshot.step):
            # Workers that took this one for dead have swept its parts. Nothing older may be dropped for it.
            raise UnavailableError(f"the checkpoint of step {snapshot.step} was removed while it was written")

    def _tidy(self, snapshot: Snapshot) -> None:
        """Drop what is not to be kept beside a snapshot that is published."""
        self._scores = {step: score for step, score in self._scores.items() if step < snapshot.step}
        self._scores[snapshot.step] = snapshot.score
        kept = kept_steps(self._scores, self._keep)
        self._scores = {step: score for step, score in self._scores.items() if step in kept}
        for step in sorted(self._there - kept):  # newer ones were found damaged, or this step would not be new
            self._place.drop(step)
            self._there.remove(step)


def kept_steps(scores: dict[int, float | None], keep: int) -> set[int]:
    """The newest `keep` steps, and the one with the highest score; the newer of equals."""
    scored = [(score, step) for step, score in scores.items() if score is not None]
    best = {max(scored)[1]} if scored else set()
    return {*sorted(scores)[-keep:], *best}
