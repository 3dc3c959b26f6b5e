"""Early stopping of trials: Ray's ASHA, which gets the reports of earlier commands again."""

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from jobs.config import TrainConfig
from jobs.search.config import TuneConfig


class ResumableAsha(AsyncHyperBandScheduler):
    """Asynchronous successive halving that never revises a decision of an earlier command.

    Args:
        reported_steps: Step of each trial's last report to earlier commands, by number, up to which it may continue.
        settings: Settings of Ray's scheduler.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934.
    """

    def __init__(self, reported_steps: Mapping[int, int], **settings: Any) -> None:
        super().__init__(**settings)
        self._reported_steps = reported_steps

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Return whether the trial continues after a report."""
        action = super().on_trial_result(tune_controller, trial, result)
        repeated = result.get("step", 0) <= self._reported_steps.get(trial.config["number"], 0)
        return TrialScheduler.CONTINUE if repeated else action


def make_scheduler(config: TuneConfig, train: TrainConfig, reported_steps: Mapping[int, int]) -> TrialScheduler:
    """Create the scheduler that `tune.scheduler` names; see `ResumableAsha` for `reported_steps`."""
    if config.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return ResumableAsha(
        reported_steps,
        time_attr="step",
        metric=config.objectives[0],
        mode="max",
        max_t=config.budget(train.steps) + 1,  # because ASHA would stop a trial at max_t that finishes there
        grace_period=config.grace(train.steps, train.lr_warmup_steps),
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,  # else a last report would count at every milestone that the trial did not report at
    )
