"""The tune stage: a search over settings, each trial a training of its own below one MLflow run."""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from jobs.data.shard_files import DataAccess
from jobs.errors import AGAIN, AwayError, UserError
from jobs.messages import Failed, Opened, Point, Scored, Started, Told, Warned
from jobs.placement import Room, place_trials
from jobs.search.proposals import Proposals
from jobs.search.records import Trial, best_so_far
from jobs.search.space import Values
from jobs.search.trial import TrialPlan
from jobs.tracking_errors import TrackingError
from jobs.training import TrainJob
from jobs.tune import Ended, run_search
from pipeline.config import Config
from pipeline.evaluation import check_evaluation
from pipeline.record import search_command, search_params
from pipeline.search_report import conclude, trial_line
from pipeline.searches import Search, trial_config
from pipeline.session import Session
from pipeline.settings import SettingsError, apply
from pipeline.training import train_job
from pipeline.trial_log import TrialLog
from pipeline.workspace import Workspace

_SAVE_SECONDS = 2.0  # between two writes of the record, but for ends of trials
_PATIENCE, _LAST_PATIENCE = 3.0, 30.0  # with an MLflow that is away: when a trial ends, when the search does, s


def tune(session: Session) -> None:
    """Search the space of the settings, from where an earlier command left it.

    Raises:
        UserError: the user can mend it; what is known of the trials is kept.
    """
    search = Search(session.workspace)
    _check(session)
    room = place_trials(session.config.train, session.config.tune, session.resources)
    run_id = session.remembered(search.identity_file, {}, lambda key: _start(session, key))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, search.scratch, ignore_errors=True)
        stack.enter_context(session.tracker.marking_failure(run_id))
        session.tracker.resume_run(run_id)
        follow = _Follower(session, search, run_id, stack)
        stack.callback(search.save)
        exhausted = _run(session, search, room, follow)
        follow.finish()
        conclude(session, search, run_id, room.at_once)
        session.tracker.end_run(run_id, "FINISHED")
    search.close(exhausted=exhausted)


def _check(session: Session) -> None:
    """See that there is something to judge trials by.

    Raises:
        UserError: there is not.
    """
    if {"train", "evaluate"} & set(session.config.stage):
        check_evaluation(session)
    dataset, objectives = session.dataset, session.config.tune.objectives
    if not dataset.num_samples("validation"):
        raise UserError(
            "stage=tune judges trials on validation images, and there are none: set data.validation_fraction"
        )
    varying = sum(len(factor.values) > 1 for factor in dataset.factors)
    needed = max({"elbo": 0, "mig_sup": 2}.get(name, 1) for name in objectives)
    if varying < needed:
        raise UserError(
            f"tune.objectives={','.join(objectives)} needs {needed} factors that vary, and this dataset has {varying}: "
            "use tune.objectives=elbo"
        )


def _start(session: Session, key: str) -> str:
    """The MLflow run of the search."""
    config = session.config
    tags = {"command": search_command(config), "data_fingerprint": session.dataset.fingerprint}
    name = f"search-{config.model.name}-{config.data.name}"
    return session.tracker.start_run(name, search_params(config), session.data, key=key, tags=tags, context="search")


@dataclass(frozen=True)
class _JobMaker:
    """Makes the training of a point, in the process of its trial."""

    config: Config
    access: DataAccess
    data_fingerprint: str
    cpus_per_worker: float  # of a trial of several workers, which places them itself

    def __call__(self, values: Values) -> TrainJob:
        config = apply(trial_config(self.config, values), {"train.cpus_per_worker": self.cpus_per_worker})
        workspace = Workspace(config)
        return train_job(config, self.access, workspace.other_run(workspace.training_name(self.data_fingerprint)))


def _run(session: Session, search: Search, room: Room, follow: "_Follower") -> bool:
    """Run the trials that are missing; whether the space has no more."""
    config, known = session.config, list(search.trials)
    nested = config.train.num_workers > 1
    gpu = room.placement.num_gpus > 0
    plan = TrialPlan(
        make_job=_JobMaker(config, session.workspace.access, session.dataset.fingerprint, room.placement.num_cpus),
        objectives=config.tune.objectives,
        known={trial.key: trial for trial in known},
        threads=room.placement.threads,
        device="cuda" if gpu and not nested else "cpu",
        max_failures=config.train.max_failures,
        nested=session.resources if nested else None,
        scratch=search.scratch,
    )

    def name(values: Values) -> str | None:
        try:
            trial = session.of(trial_config(config, values))
            trial.count_parameters(session.dataset.image_shape)
        except (SettingsError, UserError):
            return None
        return trial.run.folder.name

    proposals = Proposals(config.tune, known, name, follow.begin, follow.ended)
    run_search(config.tune, plan, room, proposals, config.train, search.scratch, follow)
    return proposals.exhausted


class _Follower:
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

    def __call__(self, told: Sequence[Told], ended: Sequence[Ended]) -> None:
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
            session = self._session.of(trial_config(self._search.config, values), self._run_id, number)
            trial = known or Trial(number, values, run=session.run.folder.name)
            self._logs[number] = TrialLog(session, trial, self._stack)
            if known is None:
                trials.append(trial)
        return self._logs[number]

    def _take(self, told: Told) -> None:
        log, report = self._log(told.number, told.values), self._session.report
        match told.message:
            case Scored():
                log.trial.add(told.message.step, told.message.scores)
                self._progress()
            case Failed(reason, own=own):
                log.trial.reason = reason
                self._shared[told.number] = "" if own else reason
            case Warned():
                report.line(f"{'':<9}trial {told.number}, step {told.message.step}: {told.message.text}")
                log.take(told.message)
            case Started() | Opened():
                self._progress()
                log.take(told.message)
            case _:
                log.take(told.message)

    def _end(self, end: Ended) -> None:
        if self.ended(end.number):  # by an earlier command, and proposed again
            return
        log = self._log(end.number, dict(end.values))
        trial = log.trial
        if end.status == "failed" and self._shared.get(end.number):
            raise UserError(f"trial {end.number}: {self._shared[end.number]}; then run {AGAIN} again to go on")
        trial.status, trial.ended_ms = end.status, time.time_ns() // 1_000_000
        trial.reason = "" if end.status != "failed" else trial.reason or end.reason
        self._session.report.line(f"{'':<9}{trial_line(trial, self._search.config.tune.objectives)}")
        with suppress(TrackingError, AwayError):  # tried again at the end
            log.end(_PATIENCE)
            self._course()

    def _course(self) -> None:
        """The best score by the number of trials, as the curve of the search's run."""
        config = self._search.config.tune
        course = best_so_far(self._search.trials, config.objectives)
        points = [Point(number, time_ms, metrics) for number, (time_ms, metrics) in enumerate(course, start=1)]
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
