"""One trial of a search on its way to MLflow: its run below the search's, its curve, how it ended."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from jobs.checkpoint import read_history
from jobs.checkpoints import Checkpoints
from jobs.messages import Message, Started
from jobs.search.records import Status, Trial
from jobs.sender import Sender
from jobs.tracked_runs import VALUE
from jobs.tracking_errors import TrackingAwayError
from pipeline.session import Session
from pipeline.training import log_settings, record_training

_PAUSE = 10.0  # before MLflow is asked again for the run of a trial, s
_MLFLOW_STATUS: dict[Status, str] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class TrialLog:
    """Takes what a trial tells to its run. While MLflow is away trials go on, and this keeps what they tell.

    Args:
        session: of the trial's settings.
        trial: the record of it.
        stack: of the search: marks the run as killed if the search is.
    """

    def __init__(self, session: Session, trial: Trial, stack: ExitStack) -> None:
        self._session, self.trial = session, trial
        self._stack = stack.enter_context(ExitStack())
        # Before a checkpoint is written beside another command's.
        self._stack.enter_context(session.workspace.lock(session.run.folder.name))
        self._waiting: list[Message] = []
        self._sender: Sender | None = None
        self._asked = -_PAUSE

    def take(self, message: Message) -> None:
        """Handle one message of the training; one that is late goes with the rest, or is in the checkpoint."""
        if self.trial.logged:
            return
        self._waiting.append(message)
        if self.trial.ended:
            return
        if self._sender is None and time.monotonic() > self._asked + _PAUSE:
            try:
                self._open()
            except TrackingAwayError:
                self._asked = time.monotonic()
        self._pass_on()

    def news(self) -> list[str]:
        """What the person should know since the last call."""
        return self._sender.news() if self._sender else []

    def _open(self) -> Sender:
        """The sender, made with the run if there is none."""
        if self._sender is None:
            tracker, run_id = self._session.tracker, self._session.origin.run_id
            self._stack.enter_context(tracker.marking_failure(run_id))
            self._sender = self._stack.enter_context(Sender(tracker, run_id, self._session.spools))
        return self._sender

    def _pass_on(self) -> None:
        if self._sender is not None:
            for message in self._waiting:
                self._sender.take(message)
            self._waiting.clear()

    def end(self, patience: float) -> None:
        """Give MLflow all of a trial that has ended, and note in its record that it has it.

        Args:
            patience: how long to bear with an MLflow that takes nothing, s.

        Raises:
            TrackingError: it does not take it; to be called again.
        """
        sender = self._open()
        self._pass_on()
        self._sender = None  # it ends here, well or not: another one has what is left in the spool
        session, trial, tracker = self._session, self.trial, self._session.tracker
        origin = session.origin
        place = Checkpoints(session.run.checkpoint_place)
        with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
            newest = place.newest(Path(folder))
            if trial.status == "finished" and newest is not None:
                record_training(session, origin, sender, newest, patience)
            else:
                if newest is not None:
                    sender.take(Started(place.step_of(newest), read_history(newest)))
                sender.close(patience)
                log_settings(session, origin)
        values = {f"{VALUE}{key}": str(value) for key, value in trial.values.items()}
        tags = {"tune.trial": str(trial.number), "tune.status": trial.status, **values}
        if trial.reason:
            tags["tune.reason"] = trial.reason
        tracker.end_run(origin.run_id, _MLFLOW_STATUS[trial.status], tags)
        self._stack.close()
        trial.logged = True
