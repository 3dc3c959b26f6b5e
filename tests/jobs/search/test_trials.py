"""The record of trials: what it keeps, who is best, and the Pareto front against its definition."""

import itertools
import json
import math

import numpy as np
import pytest

from jobs.search.trials import Status, Trial, best_first, best_so_far, pareto_front, vector


def trial(number: int, status: Status = "finished", ended_ms: int = 0, **scores: float) -> Trial:
    reports = [(10, {"elbo": -100.0}), (20, scores)] if scores else []
    return Trial(number, {"seed": number}, status, ended_ms=ended_ms, reports=reports)


def test_a_record_comes_back_from_json_as_it_was() -> None:
    before = Trial(3, {"model.latent_dims": "3,4", "train.learning_rate": 0.1 + 0.2, "seed": 5}, "stopped", "why")
    before.add(10, {"elbo": -3.5})
    after = Trial.load(json.loads(json.dumps(before.dump())))
    assert after == before
    assert after.key == before.key
    assert after.reports == [(10, {"elbo": -3.5})]


def test_a_report_that_is_given_again_is_not_taken_twice() -> None:
    one = trial(0)
    assert [one.add(step, {"elbo": float(step)}) for step in (10, 20, 10, 20, 30)] == [True, True, False, False, True]
    assert (one.step, one.scores) == (30, {"elbo": 30.0})


def test_the_front_is_what_no_other_beats() -> None:
    generator = np.random.default_rng(0)
    names = ["a", "b", "c"]
    trials = [trial(n, **dict(zip(names, generator.integers(0, 6, 3).tolist(), strict=True))) for n in range(60)]
    values = {one.number: np.array(vector(one, names)) for one in trials}
    beaten = {
        mine
        for mine, other in itertools.permutations(values, 2)
        if (values[other] >= values[mine]).all() and (values[other] > values[mine]).any()
    }
    assert {one.number for one in pareto_front(trials, names)} == set(values) - beaten
    assert beaten


def test_stopped_and_failed_trials_and_those_without_a_score_are_on_no_front() -> None:
    trials = [
        trial(0, a=1, b=1),
        trial(1, "stopped", a=9, b=9),
        trial(2, "failed", a=9, b=9),
        trial(3, a=9, b=math.nan),
    ]
    assert [one.number for one in pareto_front(trials, ["a", "b"])] == [0]
    assert pareto_front([], ["a"]) == []


def test_best_first() -> None:
    trials = [
        trial(0, "failed"),
        trial(1, "stopped", a=9),
        trial(2, "finished", a=1),
        trial(3, "finished", a=3),
        trial(4, "finished", a=3),
        trial(5, "finished", a=math.nan),
        trial(6, "running"),
    ]
    assert [one.number for one in best_first(trials, ["a"])] == [3, 4, 2, 5, 1, 6, 0]


def test_of_several_objectives_the_front_comes_first() -> None:
    trials = [trial(0, a=5, b=0), trial(1, a=4, b=0), trial(2, a=1, b=9)]
    assert [one.number for one in best_first(trials, ["a", "b"])] == [0, 2, 1]


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_course_of_a_search_goes_by_the_time_of_the_ends(shuffled: bool) -> None:
    trials = [trial(0, ended_ms=30, a=1), trial(1, "stopped", ended_ms=10, a=3), trial(2, "failed", ended_ms=20)]
    trials.append(trial(3, "running"))
    course = best_so_far(trials[::-1] if shuffled else trials, ["a"])
    assert [time for time, _ in course] == [10, 20, 30]
    assert [metrics["best/a"] for _, metrics in course] == [3, 3, 3]
    assert course[-1][1] == {"best/a": 3, "trials/finished": 1, "trials/stopped": 1, "trials/failed": 1}
