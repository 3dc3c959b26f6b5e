"""Watch a search: the record of its trials, what they tell to MLflow, what the terminal shows."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from jobs.checkpoints.format import read_history
from jobs.checkpoints.manager import Checkpoints
from jobs.errors import AGAIN, UnavailableError, UserError
from jobs.events import (
    Event,
    MetricPoint,
    ShardsOpened,
    TrainingResumed,
    TrainingWarning,
    WorkerFailed,
)
from jobs.search.space import Values
from jobs.search.trials import Status, Trial, TrialEvent, TrialReport, best_so_far
from jobs.tracking.client import TrackingError, TrackingUnavailableError
from jobs.tracking.query import VALUE
from jobs.tracking.uploader import MetricUploader
from jobs.tune import TrialResult
from pipeline.searches import Search, trial_config
from pipeline.session import Session
from pipeline.stages.train import log_settings, record_training
from pipeline.stages.tune_report import trial_line
from pipeline.workspace import Workspace

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
        self._waiting: list[Event] = []
        self._sender: MetricUploader | None = None
        self._asked = -_PAUSE

    def take(self, message: Event) -> None:
        """Handle one message of the training; one that is late goes with the rest, or is in the checkpoint."""
        if self.trial.logged:
            return
        self._waiting.append(message)
        if self.trial.ended:
            return
        if self._sender is None and time.monotonic() > self._asked + _PAUSE:
            try:
                self._open()
            except TrackingUnavailableError:
                self._asked = time.monotonic()
        self._pass_on()

    def news(self) -> list[str]:
        """What the person should know since the last call."""
        return self._sender.news() if self._sender else []

    def _open(self) -> MetricUploader:
        """The sender, made with the run if there is none."""
        if self._sender is None:
            tracker, run_id = self._session.tracker, self._session.origin.run_id
            self._stack.enter_context(tracker.marking_failure(run_id))
            self._sender = self._stack.enter_context(MetricUploader(tracker, run_id, self._session.spools))
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
                    sender.take(TrainingResumed(place.step_of(newest), read_history(newest)))
                sender.close(patience)
                log_settings(session, origin)
        values = {f"{VALUE}{key}": str(value) for key, value in trial.values.items()}
        tags = {"tune.trial": str(trial.number), "tune.status": trial.status, **values}
        if trial.reason:
            tags["tune.reason"] = trial.reason
        tracker.end_run(origin.run_id, _MLFLOW_STATUS[trial.status], tags)
        self._stack.close()
        trial.logged = True


_SAVE_SECONDS = 2.0  # between two writes of the record, but for ends of trials
_PATIENCE, _LAST_PATIENCE = 3.0, 30.0  # with an MLflow that is away: when a trial ends, when the search does, s


class SearchProgress:
    """Keeps the record of the trials, and takes what they tell to MLflow and to the screen.

    Args:
        session: of the search.
        search: its record.
        run_id: its MLflow run.
        stack: closes what trials have open.
    """

    def __init__(self, session: Session, search: Search, run_id: str, stack: ExitStack) -> None:
        self._session, self._search, self._run_id, self._stack = session, search, run_id, stack
        self._logs: dict[int, TrialLog] = {}
        self._shared: dict[int, str] = {}  # what a trial met last that is not its own trouble
        self._saved = 0.0
        for trial in search.trials:
            if trial.ended and not trial.logged:
                self._log(trial.number, trial.values)

    def begin(self, number: int, values: Values) -> None:
        """Record a trial before anything is made of it, in Ray Tune's thread.

        Raises:
            UserError: another command trains the same.
        """
        if self.ended(number) is None:
            self._log(number, values)
            self._search.save()

    def ended(self, number: int) -> Trial | None:
        """What is known of a trial that has ended."""
        return next((one for one in self._search.trials if one.number == number and one.ended), None)

    def __call__(self, told: Sequence[TrialEvent], ended: Sequence[TrialResult]) -> None:
        """Handle what came since the last call."""
        for one in told:
            self._take(one)
        for end in ended:
            self._end(end)
        if ended or (told and time.monotonic() > self._saved + _SAVE_SECONDS):
            self._search.save()
            self._saved = time.monotonic()
        for log in list(self._logs.values()):
            for news in log.news():
                self._session.report.line(f"{'':<9}trial {log.trial.number}: {news}")

    def _log(self, number: int, values: Values) -> TrialLog:
        """That of a trial, begun if it is new."""
        if number not in self._logs:
            trials = self._search.trials
            known = next((one for one in trials if one.number == number), None)
            session = self._session.of(Workspace(trial_config(self._search.config, values)), self._run_id, number)
            trial = known or Trial(number, values, run=session.run.folder.name)
            self._logs[number] = TrialLog(session, trial, self._stack)
            if known is None:
                trials.append(trial)
        return self._logs[number]

    def _take(self, told: TrialEvent) -> None:
        log, report = self._log(told.number, told.values), self._session.report
        match told.message:
            case TrialReport():
                log.trial.add(told.message.step, told.message.scores)
                self._progress()
            case WorkerFailed(reason, trial_specific=own):
                log.trial.reason = reason
                self._shared[told.number] = "" if own else reason
            case TrainingWarning():
                report.line(f"{'':<9}trial {told.number}, step {told.message.step}: {told.message.text}")
                log.take(told.message)
            case TrainingResumed() | ShardsOpened():
                self._progress()
                log.take(told.message)
            case _:
                log.take(told.message)

    def _end(self, end: TrialResult) -> None:
        if self.ended(end.number):  # by an earlier command, and proposed again
            return
        log = self._log(end.number, dict(end.values))
        trial = log.trial
        if end.status == "failed" and self._shared.get(end.number):
            raise UserError(f"trial {end.number}: {self._shared[end.number]}; then run {AGAIN} again to go on")
        trial.status, trial.ended_ms = end.status, time.time_ns() // 1_000_000
        trial.reason = "" if end.status != "failed" else trial.reason or end.reason
        self._session.report.line(f"{'':<9}{trial_line(trial, self._search.config.tune.objectives)}")
        with suppress(TrackingError, UnavailableError):  # tried again at the end
            log.end(_PATIENCE)
            self._course()

    def _course(self) -> None:
        """The best score by the number of trials, as the curve of the search's run."""
        config = self._search.config.tune
        course = best_so_far(self._search.trials, config.objectives)
        points = [MetricPoint(number, time_ms, metrics) for number, (time_ms, metrics) in enumerate(course, start=1)]
        self._session.tracker.complete_curve(self._run_id, points)

    def _progress(self) -> None:
        trials, config = self._search.trials, self._search.config.tune
        under_way = [f"trial {one.number} at step {one.step}" for one in trials if not one.ended]
        ended = sum(one.ended for one in trials)
        self._session.report.progress(f"tune     {ended} of {config.trials} trials ended; {', '.join(under_way)}")

    def finish(self) -> None:
        """Give MLflow what it lacks.

        Raises:
            UserError: it does not take it.
        """
        try:
            for log in self._logs.values():
                if log.trial.ended and not log.trial.logged:
                    log.end(_LAST_PATIENCE)
            self._course()
        except TrackingError as error:
            raise UserError(
                f"the search is finished and nothing is lost, but MLflow at {error.uri} failed: {error.reason}; run "
                f"{AGAIN} again to send it the rest"
            ) from error
        finally:
            self._search.save()
