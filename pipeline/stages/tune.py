"""The tune stage: a search over settings, each trial a training of its own below one MLflow run."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass

from jobs.cli import UsageError
from jobs.data.shard_reader import DataAccess
from jobs.errors import UserError
from jobs.search.resources import TrialResources, allocate_trials
from jobs.search.searcher import OptunaSearcher
from jobs.search.space import Values
from jobs.search.trainable import TrialPlan
from jobs.training.state import TrainJob
from jobs.tune import run_search
from pipeline.searches import Search, trial_config
from pipeline.session import Session
from pipeline.settings.commands import search_command, search_params
from pipeline.settings.parse import apply
from pipeline.settings.schema import Config
from pipeline.stages.evaluate import check_evaluation
from pipeline.stages.train import train_job
from pipeline.stages.tune_progress import SearchProgress
from pipeline.stages.tune_report import conclude
from pipeline.workspace import Workspace


def tune(session: Session) -> None:
    """Search the space of the settings, from where an earlier command left it.

    Raises:
        UserError: the user can mend it; what is known of the trials is kept.
    """
    search = Search(session.workspace)
    _check(session)
    room = allocate_trials(session.config.train, session.config.tune, session.resources)
    run_id = session.remembered(search.identity_file, {}, lambda key: _start(session, key))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, search.scratch, ignore_errors=True)
        stack.enter_context(session.tracker.marking_failure(run_id))
        session.tracker.resume_run(run_id)
        session.tracker.tag(
            run_id, {"command": search_command(session.config)}
        )  # of the newest, which may want more trials
        follow = SearchProgress(session, search, run_id, stack)
        stack.callback(search.save)
        exhausted = _run(session, search, room, follow)
        follow.finish()
        conclude(session, search, run_id, room.max_concurrent)
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
    needed = max({"elbo": 0, "mean_color_gap": 0, "mig_sup": 2}.get(name, 1) for name in objectives)
    if varying < needed:
        raise UserError(
            f"tune.objectives={','.join(objectives)} needs {needed} factors that vary, and this dataset has {varying}: "
            "use tune.objectives=elbo or mean_color_gap"
        )


def _start(session: Session, key: str) -> str:
    """The MLflow run of the search."""
    config = session.config
    tags = {"data_fingerprint": session.dataset.fingerprint}
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


def _run(session: Session, search: Search, room: TrialResources, follow: SearchProgress) -> bool:
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
            trial = session.of(Workspace(trial_config(config, values)))
            trial.count_parameters(session.dataset.image_shape)
        except (UsageError, UserError):
            return None
        return trial.run.folder.name

    proposals = OptunaSearcher(config.tune, known, name, follow.begin, follow.ended)
    run_search(config.tune, plan, room, proposals, config.train, search.scratch, follow)
    return proposals.exhausted
