"""Who stops trials early: Ray's ASHA, which is told again what an earlier command knows."""

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from jobs.config import TrainConfig
from jobs.search.config import TuneConfig


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020) that has nothing to decide about what is known.

    Args:
        known: step up to which a trial of an earlier command was let go on, by its number.
        settings: Ray's own.
    """

    def __init__(self, known: Mapping[int, int], **settings: Any) -> None:
        super().__init__(**settings)
        self._known = known

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Take the result into account, and say whether the trial goes on."""
        action = super().on_trial_result(tune_controller, trial, result)
        known = result.get("step", 0) <= self._known.get(trial.config["number"], 0)
        return TrialScheduler.CONTINUE if known else action


def make_scheduler(config: TuneConfig, train: TrainConfig, known: Mapping[int, int]) -> TrialScheduler:
    """Who stops trials early; arguments as for `Asha`."""
    if config.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return Asha(
        known,
        time_attr="step",
        metric=config.objectives[0],
        mode="max",
        max_t=config.budget(train.steps) + 1,  # a trial that reaches its end is not stopped there
        grace_period=config.grace(train.steps, train.lr_warmup_steps),
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,  # else a last score would count as that of every look that a trial gave none for
    )
