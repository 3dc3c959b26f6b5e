"""Trials of a search: reports, ranking, and the Pareto front against its definition."""

import itertools
import math

import numpy as np
import pytest

from jobs.search.trials import Status, Trial, best_first, best_so_far, pareto_front


def trial(number: int, status: Status = "finished", ended_ms: int = 0, **metrics: float) -> Trial:
    reports = [(10, {"elbo": -100.0}), (20, metrics)] if metrics else []
    return Trial(number, {"seed": number}, status, ended_ms=ended_ms, reports=reports)


def test_trial_ignores_repeated_reports() -> None:
    """A report of a step that was reported before is not added."""
    resumed = trial(0)
    assert [resumed.add(step, {"elbo": float(step)}) for step in (10, 20, 10, 20, 30)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert (resumed.step, resumed.metrics) == (30, {"elbo": 30.0})


def test_pareto_front_is_non_dominated_set() -> None:
    """The front is the complement of the dominated trials."""
    generator = np.random.default_rng(0)
    names = ["a", "b", "c"]
    trials = [trial(n, **dict(zip(names, generator.integers(0, 6, 3).tolist(), strict=True))) for n in range(60)]
    values = {trial.number: np.array(trial.objective_values(names)) for trial in trials}
    dominated = {
        number
        for number, other in itertools.permutations(values, 2)
        if (values[other] >= values[number]).all() and (values[other] > values[number]).any()
    }
    assert {trial.number for trial in pareto_front(trials, names)} == set(values) - dominated
    assert dominated


def test_pareto_front_needs_finished_trials() -> None:
    """Stopped and failed trials and those without a finite metric are on no front."""
    trials = [
        trial(0, a=1, b=1),
        trial(1, "stopped", a=9, b=9),
        trial(2, "failed", a=9, b=9),
        trial(3, a=9, b=math.nan),
    ]
    assert [trial.number for trial in pareto_front(trials, ["a", "b"])] == [0]
    assert pareto_front([], ["a"]) == []


def test_best_first_orders_by_status_and_metric() -> None:
    """Finished trials come first, then stopped, running and failed ones; ties keep the order of the numbers."""
    trials = [
        trial(0, "failed"),
        trial(1, "stopped", a=9),
        trial(2, "finished", a=1),
        trial(3, "finished", a=3),
        trial(4, "finished", a=3),
        trial(5, "finished", a=math.nan),
        trial(6, "running"),
    ]
    assert [trial.number for trial in best_first(trials, ["a"])] == [3, 4, 2, 5, 1, 6, 0]


def test_best_first_puts_pareto_front_first() -> None:
    """A trial of the front comes before a dominated one with a better first objective."""
    trials = [trial(0, a=5, b=0), trial(1, a=4, b=0), trial(2, a=1, b=9)]
    assert [trial.number for trial in best_first(trials, ["a", "b"])] == [0, 2, 1]


@pytest.mark.parametrize("shuffled", [False, True])
def test_best_so_far_is_ordered_by_time(shuffled: bool) -> None:
    """The curve has a point for each trial that is done, in the order of their ends."""
    trials = [trial(0, ended_ms=30, a=1), trial(1, "stopped", ended_ms=10, a=3), trial(2, "failed", ended_ms=20)]
    trials.append(trial(3, "running"))
    curve = best_so_far(trials[::-1] if shuffled else trials, ["a"])
    assert [time for time, _ in curve] == [10, 20, 30]
    assert [metrics["best/a"] for _, metrics in curve] == [3, 3, 3]
    assert curve[-1][1] == {"best/a": 3, "trials/finished": 1, "trials/stopped": 1, "trials/failed": 1}
