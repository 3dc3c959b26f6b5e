"""Who is stopped early, by Ray's own ASHA as the search sets it up."""

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

    def __init__(self, known: dict[int, int] | None = None, **settings: Any) -> None:
        self.scheduler = make_scheduler(TuneConfig(**settings), TRAIN, known or {})

    def stopped_at(self, number: int, scores: dict[int, float]) -> int | None:
        """The step at which a trial with these scores by step is stopped, or None."""
        trial: Any = SimpleNamespace(trial_id=str(number), config={"number": number})
        controller: Any = None
        self.scheduler.on_trial_add(controller, trial)
        result: dict[str, Any] = {}
        for step, score in scores.items():
            result = {"step": step, "elbo": score}
            if self.scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                self.scheduler.on_trial_complete(controller, trial, result)
                return step
        self.scheduler.on_trial_complete(controller, trial, result)
        return None


def test_poor_trials_are_stopped_at_the_first_look() -> None:
    search = Search()
    good = {100: -50.0, 200: -40.0, 300: -30.0, 900: -10.0}
    assert search.stopped_at(0, good) is None
    assert search.stopped_at(1, {100: -90.0, 200: -80.0}) == 100
    assert search.stopped_at(2, {100: -49.0, 200: -39.0, 300: -35.0, 900: -10.0}) == 300
    assert search.stopped_at(3, {step: score + 1 for step, score in good.items()}) is None


def test_nobody_is_stopped_without_a_scheduler_or_before_the_rate_has_risen() -> None:
    search = Search(scheduler="none")
    assert search.stopped_at(0, {100: -50.0}) is None
    assert search.stopped_at(1, {100: -90.0}) is None
    late = make_scheduler(TuneConfig(), TRAIN.model_copy(update={"lr_warmup_steps": 400}), {})
    assert min(milestone for milestone, _ in late._brackets[0]._rungs) == 400


def test_a_trial_that_gives_its_last_score_alone_does_not_raise_the_bar_of_earlier_looks() -> None:
    """Such as one that `stage=train` or another search had trained already."""
    search = Search()
    for number in range(3):
        assert search.stopped_at(number, {900: -10.0 - number}) in (None, 900)  # it has come to its end anyway
    assert search.stopped_at(3, {100: -50.0, 200: -40.0, 300: -30.0, 900: -1.0}) is None


def test_what_an_earlier_command_let_go_on_is_taken_in_and_not_decided_again() -> None:
    search = Search(known={1: 300})
    assert search.stopped_at(0, {100: -50.0, 300: -30.0, 900: -10.0}) is None
    assert search.stopped_at(1, {100: -90.0, 300: -80.0, 900: -70.0}) == 900
    assert search.stopped_at(2, {100: -85.0}) == 100


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_one_in_so_many_goes_on(factor: float) -> None:
    search = Search(reduction_factor=factor)
    scores = [float(-((7 * number) % 32)) for number in range(32)]
    went_on = [score for number, score in enumerate(scores) if search.stopped_at(number, {100: score}) is None]
    assert len(went_on) < 32 * 2 / factor
    assert max(scores) in went_on
