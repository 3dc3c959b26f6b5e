"""The tune stage: a search over settings. Each trial is a training whose MLflow run lies below that of the search."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass

from jobs.cli import UsageError
from jobs.data.shard_reader import DataAccess
from jobs.errors import UserError
from jobs.evaluation.registry import required_factors, required_images
from jobs.search.resources import allocate_trials
from jobs.search.searcher import OptunaSearcher
from jobs.search.space import Values
from jobs.search.trainable import TrialPlan
from jobs.training.state import TrainJob
from jobs.tune import run_search
from pipeline.searches import Search, SearchRecord
from pipeline.session import Session
from pipeline.settings.commands import search_command, search_params
from pipeline.settings.parse import apply_overrides
from pipeline.settings.schema import Config, format_value
from pipeline.settings.search_space import trial_config
from pipeline.stages.evaluate import check_evaluation
from pipeline.stages.train import train_job
from pipeline.stages.tune_progress import SearchProgress
from pipeline.stages.tune_report import report_search
from pipeline.workspace import Workspace


def tune(session: Session) -> None:
    """Search the space of the settings, from where an earlier command stopped.

    Raises:
        UserError: A setting, the dataset or a service is at fault. The record of the trials is kept.
    """
    config, search = session.config, Search(session.workspace)
    session.report.log_to(search.log)
    check_objectives(session)
    session.report.line(f"{'':<9}search space: {format_value(config.tune.param_space)}")
    resources = allocate_trials(config.train, config.tune, session.resources)

    def start_run(key: str) -> str:
        name, tags = f"search-{config.model.name}-{config.data.name}", {"data_fingerprint": session.dataset.fingerprint}
        params = search_params(config)
        return session.tracker.start_run(name, params, session.data, key=key, tags=tags, context="search")

    run_id = session.get_or_create_run(search.record_path, SearchRecord(), start_run)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, search.scratch, ignore_errors=True)
        stack.enter_context(session.tracker.marking_failure(run_id))
        session.tracker.resume_run(run_id)
        session.tracker.tag(run_id, {"command": search_command(config)})  # this command may allow more trials
        progress = SearchProgress(session, search, run_id, stack)
        stack.callback(search.save)
        trials = list(search.trials)
        nested = config.train.num_workers > 1
        plan = TrialPlan(
            make_job=_JobFactory(
                config, session.workspace.access, session.dataset.fingerprint, resources.worker.num_cpus, session.owner
            ),
            objectives=config.tune.objectives,
            trials={trial.key: trial for trial in trials},
            threads=resources.worker.threads,
            device="cuda" if resources.worker.num_gpus and not nested else "cpu",
            max_failures=config.train.max_failures,
            nested=session.resources if nested else None,
            scratch=search.scratch,
        )

        def training_name(values: Values) -> str | None:
            try:
                trial = Session(session.context, Workspace(trial_config(config, values)))
                trial.count_parameters(session.dataset.image_shape)
            except (UsageError, UserError):
                return None
            return trial.run.folder.name

        searcher = OptunaSearcher(config.tune, trials, training_name, progress.start_trial, progress.find_result)
        run_search(config.tune, plan, resources, searcher, config.train, search.scratch, progress)
        progress.finish()
        report_search(session, search, run_id, resources.max_concurrent)
        session.tracker.end_run(run_id, "FINISHED")
    search.complete(exhausted=searcher.exhausted)


def check_objectives(session: Session) -> None:
    """Raise UserError if there are too few validation images, or too few factors vary, for the metrics."""
    if {"train", "evaluate"} & set(session.config.stage):
        check_evaluation(session)
    dataset, objectives = session.dataset, session.config.tune.objectives
    num_images = dataset.num_samples("validation")
    if not num_images:
        raise UserError(
            "data.validation_fraction: this dataset has no validation images, on which stage=tune compares trials. Set "
            "data.validation_fraction."
        )
    if num_images < required_images(objectives):
        raise UserError(
            f"tune.objectives={','.join(objectives)}: need {required_images(objectives)} validation images, and "
            f"this dataset has {num_images} of them. Raise data.validation_fraction, or use tune.objectives=elbo or "
            "mean_color_gap."
        )
    varying = sum(len(factor.values) > 1 for factor in dataset.select_factors(session.config.data.factors))
    needed = required_factors(objectives)
    if varying < needed:
        raise UserError(
            f"tune.objectives={','.join(objectives)}: {needed} factors must vary, and metrics use {varying}. "
            "Use tune.objectives=elbo or mean_color_gap."
        )


@dataclass(frozen=True)
class _JobFactory:
    """Make the training of a point in the process of its trial."""

    config: Config
    access: DataAccess
    data_fingerprint: str
    cpus_per_worker: float  # for a trial of several workers, which allocates them itself
    owner: str  # of the checkpoints

    def __call__(self, values: Values) -> TrainJob:
        config = apply_overrides(trial_config(self.config, values), {"train.cpus_per_worker": self.cpus_per_worker})
        workspace = Workspace(config)
        run = workspace.other_run(workspace.training_name(self.data_fingerprint))
        return train_job(config, self.access, run, self.owner)
