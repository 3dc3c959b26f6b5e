"""Early stopping by Ray's ASHA as the search configures it."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from jobs.config import TrainConfig
from jobs.search.config import TuneConfig
from jobs.search.scheduler import make_scheduler

TRAIN = TrainConfig(steps=900, lr_warmup_steps=0)


class Search:
    """Trials that report to a scheduler one after the other."""

    def __init__(self, reported_steps: dict[int, int] | None = None, **settings: Any) -> None:
        self.scheduler = make_scheduler(TuneConfig(**settings), TRAIN, reported_steps or {})

    def stopped_at(self, number: int, elbo: dict[int, float]) -> int | None:
        """Return the step at which a trial with this ELBO by step is stopped, or None."""
        trial: Any = SimpleNamespace(trial_id=str(number), config={"number": number})
        controller: Any = None
        self.scheduler.on_trial_add(controller, trial)
        result: dict[str, Any] = {}
        for step, value in elbo.items():
            result = {"step": step, "elbo": value}
            if self.scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                self.scheduler.on_trial_complete(controller, trial, result)
                return step
        self.scheduler.on_trial_complete(controller, trial, result)
        return None


def test_asha_stops_poor_trials_at_first_milestone() -> None:
    """A poor trial is stopped at the grace period, and a better one continues."""
    search = Search()
    good = {100: -50.0, 200: -40.0, 300: -30.0, 900: -10.0}
    assert search.stopped_at(0, good) is None
    assert search.stopped_at(1, {100: -90.0, 200: -80.0}) == 100
    assert search.stopped_at(2, {100: -49.0, 200: -39.0, 300: -35.0, 900: -10.0}) == 300
    assert search.stopped_at(3, {step: value + 1 for step, value in good.items()}) is None


def test_no_trial_stops_without_asha_or_in_warmup() -> None:
    """Without a scheduler all trials continue, and asha waits for the end of the warmup."""
    search = Search(scheduler="none")
    assert search.stopped_at(0, {100: -50.0}) is None
    assert search.stopped_at(1, {100: -90.0}) is None
    late = make_scheduler(TuneConfig(), TRAIN.model_copy(update={"lr_warmup_steps": 400}), {})
    assert min(milestone for milestone, _ in late._brackets[0]._rungs) == 400


def test_asha_counts_a_last_report_at_its_step_only() -> None:
    """A trial that another command trained reports its last step alone, which must not count at earlier milestones."""
    search = Search()
    for number in range(3):
        search.stopped_at(number, {900: -10.0 - number})
    assert search.stopped_at(3, {100: -50.0, 200: -40.0, 300: -30.0, 900: -1.0}) is None


def test_asha_does_not_stop_at_repeated_reports() -> None:
    """Reports of an earlier command count for other trials, and the decision about them is kept."""
    search = Search(reported_steps={1: 300})
    assert search.stopped_at(0, {100: -50.0, 300: -30.0, 900: -10.0}) is None
    assert search.stopped_at(1, {100: -90.0, 300: -80.0, 900: -70.0}) == 900
    assert search.stopped_at(2, {100: -85.0}) == 100


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_asha_continues_one_in_reduction_factor(factor: float) -> None:
    """About one in `reduction_factor` trials continues, the best one always."""
    search = Search(reduction_factor=factor)
    values = [float(-((7 * number) % 32)) for number in range(32)]
    continued = [value for number, value in enumerate(values) if search.stopped_at(number, {100: value}) is None]
    assert len(continued) < 32 * 2 / factor
    assert max(values) in continued


def test_grace_period_is_at_most_a_trial() -> None:
    assert TuneConfig(grace_period=999, steps=10).grace(900, 0) == 10
    assert TuneConfig(grace_period=7).grace(900, 100) == 7
    assert [TuneConfig().grace(900, warmup) for warmup in (0, 400, 4000)] == [100, 400, 900]
