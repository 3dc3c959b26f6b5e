"""Suggested points: none twice, earlier trials first, valid ones only, and better ones with TPE."""

from collections.abc import Callable
from typing import Any

import pytest
from optuna.samplers import TPESampler
from ray.tune.search import Searcher

from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.searcher import OptunaSearcher
from jobs.search.space import Values, grid, parse_dimension
from jobs.search.trials import Trial, point_key


def make_searcher(
    space: dict[str, str],
    trials: list[Trial] | None = None,
    is_valid: Callable[[Values], bool] = lambda _: True,
    **changes: Any,
) -> OptunaSearcher:
    config = TuneConfig(param_space=space, **changes)
    return OptunaSearcher(
        config,
        trials or [],
        lambda values: point_key(values) if is_valid(values) else None,
        lambda number, values: None,
        lambda number: None,
    )


def suggest(
    searcher: OptunaSearcher, count: int, elbo: Callable[[Values], float] = lambda _: 0.0
) -> list[dict[str, Any]]:
    """Suggest and complete up to `count` trials."""
    points = []
    for number in range(count):
        point = searcher.suggest(f"ray-{number}")
        if point == Searcher.FINISHED:
            break
        points.append(point)
        searcher.on_trial_complete(f"ray-{number}", {"step": 1, "elbo": elbo(point["values"])})
    return points


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_searcher_tries_all_points_of_small_space(algorithm: str) -> None:
    """Every point is suggested once, and then the space is exhausted."""
    space = {"model.latent_dims": "18/9,9/6,6,6", "seed": "0..3"}
    searcher = make_searcher(space, algorithm=algorithm)
    points = suggest(searcher, 50)
    keys = [point_key(point["values"]) for point in points]
    expected = {point_key(point) for point in grid({key: parse_dimension(text) for key, text in space.items()})}
    assert len(keys) == 12
    assert set(keys) == expected
    assert [point["number"] for point in points] == list(range(12))
    assert searcher.exhausted


def test_searcher_grid_is_ordered() -> None:
    """The first setting changes fastest."""
    space = {"a": "x/y", "b": "1..2"}
    points = [tuple(point["values"].values()) for point in suggest(make_searcher(space, algorithm="grid"), 9)]
    assert points == [("x", 1), ("y", 1), ("x", 2), ("y", 2)]


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_searcher_skips_invalid_points(algorithm: str) -> None:
    """Points whose settings are invalid together are not suggested."""
    searcher = make_searcher(
        {"a": "1..4", "b": "1..4"}, algorithm=algorithm, is_valid=lambda point: point["a"] != point["b"]
    )
    points = [point["values"] for point in suggest(searcher, 50)]
    assert len(points) == 12
    assert all(point["a"] != point["b"] for point in points)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_searcher_repeats_earlier_trials_first(algorithm: str) -> None:
    """Points of earlier commands come first under their numbers, and new ones differ from them."""
    space = {"a": "0..20", "b": "x/y"}
    first = suggest(make_searcher(space, algorithm=algorithm), 5)
    trials = [Trial(point["number"], point["values"], "finished", reports=[(1, {"elbo": 0.0})]) for point in first]
    again = suggest(make_searcher(space, trials, algorithm=algorithm), 8)
    assert again[:5] == first
    assert [point["number"] for point in again] == list(range(8))
    assert len({point_key(point["values"]) for point in again}) == 8


def test_searcher_draws_from_ranges() -> None:
    """Integer ranges give integers, log ranges are uniform in the logarithm, and all values are in range."""
    searcher = make_searcher({"a": "2..5000", "b": "log:1e-4..1e-2"}, algorithm="random")
    points = [point["values"] for point in suggest(searcher, 60)]
    assert all(isinstance(point["a"], int) and 2 <= point["a"] <= 5000 for point in points)
    assert all(isinstance(point["b"], float) and 1e-4 <= point["b"] <= 1e-2 for point in points)
    assert sum(point["b"] < 1e-3 for point in points) in range(15, 46)  # half of them, by the logarithm


def test_searcher_tpe_beats_random_search() -> None:
    """The last 20 of 40 points of TPE are nearer to the optimum than random ones."""

    def distance(algorithm: str) -> float:
        searcher = make_searcher({"a": "0.0..1.0", "b": "0.0..1.0"}, algorithm=algorithm, seed=3)
        points = suggest(searcher, 40, elbo=lambda point: -((point["a"] - 0.7) ** 2) - (point["b"] - 0.2) ** 2)
        return sum(abs(point["values"]["a"] - 0.7) + abs(point["values"]["b"] - 0.2) for point in points[20:]) / 20

    assert distance("tpe") < 0.75 * distance("random")


def test_searcher_reports_results_to_optuna() -> None:
    """All objectives are reported, and a trial that failed or lacks a finite metric is a failure."""
    config = TuneConfig(param_space={"a": "0..99999"}, objectives="elbo,mig_sup")
    failed = Trial(1, {}, "failed", "out of memory", reports=[(1, {"elbo": 1.0, "mig_sup": 0.5})])
    searcher = OptunaSearcher(config, [], point_key, lambda *_: None, lambda number: failed if number == 1 else None)
    results: list[dict[str, float] | None] = [{"elbo": 2.0, "mig_sup": 0.1}, {"elbo": 3.0, "mig_sup": 1.0}, None]
    results += [{"elbo": 1.0}, {"elbo": float("nan"), "mig_sup": 1.0}]
    for number, result in enumerate(results):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), result, error=result is None)
    states = [(trial.state.name, trial.values) for trial in searcher._study.trials]
    assert states == [("COMPLETE", [2.0, 0.1])] + [("FAIL", None)] * 4


def test_searcher_merges_points_of_same_training() -> None:
    """Two spellings of a value name the same training, which is suggested once."""
    config = TuneConfig(param_space={"a": "0.001/1e-3/0.002"}, algorithm="grid")
    searcher = OptunaSearcher(config, [], lambda values: str(float(values["a"])), lambda *_: None, lambda number: None)
    assert [point["values"]["a"] for point in suggest(searcher, 9)] == ["0.001", "0.002"]


def test_searcher_error_at_start_ends_search() -> None:
    """A trial that cannot start ends the search with its error."""

    def start_trial(number: int, values: Values) -> None:
        if number == 2:
            raise UserError("the lock is taken")

    searcher = OptunaSearcher(TuneConfig(param_space={"a": "0..9"}), [], point_key, start_trial, lambda number: None)
    assert len(suggest(searcher, 9)) == 2
    assert str(searcher.error) == "the lock is taken"
    assert not searcher.exhausted


def test_searcher_of_a_later_command_draws_other_points() -> None:
    """Of the first command's points only the first was tried: the second command does not draw the others again."""
    first = [point["values"] for point in suggest(make_searcher({"a": "0..99999"}), 5)]
    trials = [Trial(0, first[0], "finished", reports=[(1, {"elbo": 0.0})])]
    again = [point["values"] for point in suggest(make_searcher({"a": "0..99999"}, trials), 5)]
    assert [values for values in again if values in first] == first[:1]


def test_searcher_returns_to_tpe_after_random_points() -> None:
    """Where TPE finds no valid point a random sampler does, and the next point is proposed by TPE again."""
    names = iter(range(1000))
    searcher = OptunaSearcher(
        TuneConfig(param_space={"a": "0.0..1.0"}),
        [],
        lambda values: None if (name := next(names)) < 60 else str(name),
        lambda number, values: None,
        lambda number: None,
    )
    suggest(searcher, 1)
    assert next(names) > 60
    assert isinstance(searcher._study.sampler, TPESampler)


def test_searcher_spreads_concurrent_trials() -> None:
    """Trials that run count as poor ones, so that trials which start before their end try other points."""
    searcher = make_searcher({"a": "0.0..1.0"}, seed=1)
    suggest(searcher, 30, elbo=lambda point: -abs(point["a"] - 0.5))
    points = [searcher.suggest(f"concurrent-{number}")["values"]["a"] for number in range(10)]
    assert max(points) - min(points) > 0.5
