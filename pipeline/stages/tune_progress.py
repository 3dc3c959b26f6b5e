"""Follow a search: its record, the MLflow runs of its trials, and its progress on the terminal."""

import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from jobs.checkpoints.format import read_history
from jobs.checkpoints.manager import CheckpointManager
from jobs.errors import UnavailableError, UserError
from jobs.events import Event, MetricPoint, ShardsOpened, TrainingResumed, TrainingWarning, WorkerFailed
from jobs.search.space import Values
from jobs.search.trials import Trial, TrialEvent, TrialReport, TrialResult, best_so_far
from jobs.tracking.client import TrackingError, TrackingUnavailableError
from jobs.tracking.query import VALUE
from jobs.tracking.uploader import MetricUploader
from pipeline.searches import Search
from pipeline.session import Session
from pipeline.settings.search_space import trial_config
from pipeline.stages.train import log_settings, record_training
from pipeline.stages.tune_report import trial_line
from pipeline.workspace import Workspace

_RETRY_SECONDS = 10.0  # between two attempts to create the MLflow run of a trial
_SAVE_SECONDS = 2.0  # between two writes of the record while no trial ends
# Longest wait for an unavailable MLflow, in seconds.
_TRIAL_TIMEOUT = 3.0
_SEARCH_TIMEOUT = 30.0


class TrialUploader:
    """Upload the events of a trial to its MLflow run. While MLflow is unavailable, the trial continues.

    Args:
        session: Session with the settings of the trial.
        trial: Record of the trial.
        stack: Context of the search, which marks unfinished runs as killed when the search is interrupted.

    Raises:
        UserError: Another command trains the same settings.
    """

    def __init__(self, session: Session, trial: Trial, stack: ExitStack) -> None:
        self._session, self.trial = session, trial
        self._stack = stack.enter_context(ExitStack())
        # Two commands must not write checkpoints into the same folder.
        self._stack.enter_context(session.lock_training(session.run))
        self._pending: list[Event] = []
        self._uploader: MetricUploader | None = None
        self._last_attempt = -_RETRY_SECONDS

    def put(self, event: Event) -> None:
        """Upload an event. Events after the end of the trial wait for `finish`."""
        if self.trial.uploaded:
            return
        self._pending.append(event)
        if self.trial.is_done:
            return
        if self._uploader is None and time.monotonic() > self._last_attempt + _RETRY_SECONDS:
            try:
                self._start()
            except TrackingUnavailableError:
                self._last_attempt = time.monotonic()
        if self._uploader is not None:
            self._flush(self._uploader)

    def notices(self) -> list[str]:
        """Return messages for the terminal since the last call."""
        return self._uploader.drain_notices() if self._uploader else []

    def _start(self) -> MetricUploader:
        if self._uploader is None:
            tracker, run_id = self._session.tracker, self._session.provenance.run_id
            self._stack.enter_context(tracker.marking_failure(run_id))
            self._uploader = self._stack.enter_context(MetricUploader(tracker, run_id))
        return self._uploader

    def _flush(self, uploader: MetricUploader) -> None:
        for event in self._pending:
            uploader.put(event)
        self._pending.clear()

    def finish(self, timeout: float) -> None:
        """Upload everything of a trial that is done, and mark it as uploaded; wait `timeout` seconds for MLflow.

        Raises:
            TrackingError: MLflow failed. The call can be repeated.
        """
        uploader = self._start()
        self._flush(uploader)
        self._uploader = None  # a repeated call needs a new uploader, which also sends what this one could not
        session, trial, origin = self._session, self.trial, self._session.provenance
        checkpoints = CheckpointManager(session.run.checkpoint_url)
        with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
            checkpoint = checkpoints.latest(Path(folder))
            if trial.status == "finished" and checkpoint is not None:
                record_training(session, origin, uploader, checkpoint, timeout)
            else:
                if checkpoint is not None:
                    history, step = read_history(checkpoint), checkpoints.step_of(checkpoint)
                    uploader.put(TrainingResumed(step, history.points, history.warnings))
                uploader.close(timeout)
                log_settings(session, origin)
        tags = {"tune.trial": str(trial.number), "tune.status": trial.status}
        tags |= {f"{VALUE}{key}": str(value) for key, value in trial.values.items()}
        if trial.reason:
            tags["tune.reason"] = trial.reason
        session.tracker.end_run(origin.run_id, "FAILED" if trial.status == "failed" else "FINISHED", tags)
        self._stack.close()
        trial.uploaded = True


class SearchProgress:
    """Keep the record of the trials, and show their events in MLflow and on the terminal.

    Args:
        session: Session with the settings of the search.
        search: The search.
        run_id: ID of its MLflow run.
        stack: Closes what the trials have open.
    """

    def __init__(self, session: Session, search: Search, run_id: str, stack: ExitStack) -> None:
        self._session, self._search, self._run_id, self._stack = session, search, run_id, stack
        self._uploaders: dict[int, TrialUploader] = {}
        self._shared_failures: dict[int, UserError] = {}  # not specific to the trial, by the trial's number
        self._saved_at = 0.0
        for trial in search.trials:
            if trial.is_done and not trial.uploaded:
                self._uploader(trial.number, trial.values)

    def start_trial(self, number: int, values: Values) -> None:
        """Record a trial before it creates anything. Called in Ray Tune's thread.

        Raises:
            UserError: Another command trains the same settings.
        """
        if self.find_result(number) is None:
            self._uploader(number, values)
            self._search.save()

    def find_result(self, number: int) -> Trial | None:
        """Return the record of a trial that is done, or None."""
        trial = self._search.find_trial(number)
        return trial if trial and trial.is_done else None

    def __call__(self, events: list[TrialEvent]) -> None:
        """Handle the events since the last call, oldest first.

        Raises:
            UserError: A trial failed for a reason that all trials share.
        """
        errors = [error for event in events if (error := self._handle(event))]
        has_result = any(isinstance(event.event, TrialResult) for event in events)
        if has_result or (events and time.monotonic() > self._saved_at + _SAVE_SECONDS):
            self._search.save()
            self._saved_at = time.monotonic()
        for number, uploader in list(self._uploaders.items()):  # a copy, because Ray Tune's thread adds trials
            for text in uploader.notices():
                self._session.report.line(f"{'':<9}trial {number}: {text}")
        if errors:
            raise errors[0]

    def _uploader(self, number: int, values: Values) -> TrialUploader:
        """Return the uploader of a trial, and record the trial if it is new."""
        if number not in self._uploaders:
            trial = self._search.find_trial(number)
            workspace = Workspace(trial_config(self._search.config, values))
            session = Session(self._session.context, workspace, self._run_id, number)
            record = trial or Trial(number, values, run=session.run.folder.name)
            self._uploaders[number] = TrialUploader(session, record, self._stack)
            if trial is None:
                self._search.trials.append(record)
        return self._uploaders[number]

    def _handle(self, event: TrialEvent) -> UserError | None:
        if isinstance(event.event, TrialResult):
            return self._handle_result(event, event.event)
        uploader = self._uploader(event.number, event.values)
        match event.event:
            case TrialReport(step, metrics):
                uploader.trial.add(step, metrics)
                self._show_progress()
                return None
            case WorkerFailed(reason, trial_specific=trial_specific, retry=retry):
                uploader.trial.reason = reason
                self._shared_failures.pop(event.number, None)
                if not trial_specific:
                    error = UserError(f"trial {event.number}: {reason}", retry=retry)
                    self._shared_failures[event.number] = error
                return None
            case TrainingWarning(step, text=text):
                self._session.report.line(f"{'':<9}trial {event.number}, step {step}: {text}")
            case TrainingResumed() | ShardsOpened():
                self._show_progress()
        uploader.put(event.event)
        return None

    def _handle_result(self, event: TrialEvent, result: TrialResult) -> UserError | None:
        if self.find_result(event.number):  # a trial of an earlier command, whose reports were repeated
            return None
        uploader = self._uploader(event.number, event.values)
        if result.status == "failed" and (error := self._shared_failures.get(event.number)):
            return error  # not recorded: the next command retries the trial
        trial = uploader.trial
        trial.status, trial.ended_ms = result.status, time.time_ns() // 1_000_000
        trial.reason = (trial.reason or result.reason) if result.status == "failed" else ""
        self._session.report.line(f"{'':<9}{trial_line(trial, self._search.config.tune.objectives)}")
        with suppress(TrackingError, UnavailableError):  # `finish` tries again
            uploader.finish(_TRIAL_TIMEOUT)
            self._upload_curve()
        return None

    def _upload_curve(self) -> None:
        """Upload the best metrics by the number of trials, as the curve of the search's run."""
        curve = best_so_far(self._search.trials, self._search.config.tune.objectives)
        points = [MetricPoint(number, time_ms, metrics) for number, (time_ms, metrics) in enumerate(curve, start=1)]
        self._session.tracker.complete_curve(self._run_id, points)

    def _show_progress(self) -> None:
        trials = list(self._search.trials)
        running = [f"trial {trial.number} at step {trial.step}" for trial in trials if not trial.is_done]
        progress = f"{len(trials) - len(running)} of {self._search.config.tune.trials} trials done"
        total = self._search.config.tune.trials * self._search.config.tune.budget(self._search.config.train.steps)
        done = sum(trial.step for trial in trials)
        self._session.report.progress(f"tune     {progress}; {', '.join(running)}", done, total)

    def finish(self) -> None:
        """Upload everything that MLflow does not have yet; UserError if MLflow failed."""
        try:
            for uploader in self._uploaders.values():
                if uploader.trial.is_done and not uploader.trial.uploaded:
                    uploader.finish(_SEARCH_TIMEOUT)
            self._upload_curve()
        except TrackingError as error:
            message = f"{error} The search is finished and its results are kept."
            raise UserError(message, retry=error.retry) from error
        finally:
            self._search.save()
