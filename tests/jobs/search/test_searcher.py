"""Who proposes: no point twice, earlier commands' points first, only what goes together, and towards the better."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.tune.search import Searcher

from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.searcher import OptunaSearcher
from jobs.search.space import Values, grid, parse_dimension
from jobs.search.trials import Trial, point_key


def proposals(
    space: dict[str, str],
    known: list[Trial] | None = None,
    fits: Callable[[Values], bool] = lambda _: True,
    **changes: Any,
) -> OptunaSearcher:
    config = TuneConfig(param_space=space, **changes)
    return OptunaSearcher(
        config,
        known or [],
        lambda values: point_key(values) if fits(values) else None,
        lambda number, values: None,
        lambda number: None,
    )


def ask(source: OptunaSearcher, count: int, score: Callable[[Values], float] = lambda _: 0.0) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        point = source.suggest(f"ray-{number}")
        if point == Searcher.FINISHED:
            break
        found.append(point)
        source.on_trial_complete(f"ray-{number}", {"step": 1, "elbo": score(point["values"])})
    return found


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_a_small_space_is_tried_whole_and_no_point_twice(search: str) -> None:
    space = {"model.latent_dims": "18/9,9/6,6,6", "seed": "0..3"}
    source = proposals(space, algorithm=search)
    found = ask(source, 50)
    keys = [point_key(point["values"]) for point in found]
    whole = {point_key(point) for point in grid({key: parse_dimension(text) for key, text in space.items()})}
    assert len(keys) == 12
    assert set(keys) == whole
    assert [point["number"] for point in found] == list(range(12))
    assert source.exhausted


def test_the_grid_goes_in_order() -> None:
    space = {"a": "x/y", "b": "1..2"}
    found = [tuple(point["values"].values()) for point in ask(proposals(space, algorithm="grid"), 9)]
    assert found == [("x", 1), ("y", 1), ("x", 2), ("y", 2)]


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_what_does_not_go_together_is_no_point(search: str) -> None:
    source = proposals({"a": "1..4", "b": "1..4"}, algorithm=search, fits=lambda point: point["a"] != point["b"])
    found = [point["values"] for point in ask(source, 50)]
    assert len(found) == 12
    assert all(point["a"] != point["b"] for point in found)


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_points_of_earlier_commands_come_first_under_their_numbers(search: str) -> None:
    space = {"a": "0..20", "b": "x/y"}
    first = ask(proposals(space, algorithm=search), 5)
    known = [Trial(point["number"], point["values"], "finished", reports=[(1, {"elbo": 0.0})]) for point in first]
    again = ask(proposals(space, known, algorithm=search), 8)
    assert again[:5] == first
    assert [point["number"] for point in again] == list(range(8))
    assert len({point_key(point["values"]) for point in again}) == 8


def test_numbers_are_whole_where_the_ends_are_and_within_them() -> None:
    found = [
        point["values"] for point in ask(proposals({"a": "2..5000", "b": "log:1e-4..1e-2"}, algorithm="random"), 60)
    ]
    assert all(isinstance(point["a"], int) and 2 <= point["a"] <= 5000 for point in found)
    assert all(isinstance(point["b"], float) and 1e-4 <= point["b"] <= 1e-2 for point in found)
    assert sum(point["b"] < 1e-3 for point in found) in range(15, 46)  # half of them, by the logarithm


def test_tpe_comes_nearer_to_the_best_than_chance() -> None:
    """Of 40 points on a line, the mean distance of the last 20 to the optimum."""

    def distance(search: str) -> float:
        source = proposals({"a": "0.0..1.0", "b": "0.0..1.0"}, algorithm=search, seed=3)
        found = ask(source, 40, score=lambda point: -((point["a"] - 0.7) ** 2) - (point["b"] - 0.2) ** 2)
        return sum(abs(point["values"]["a"] - 0.7) + abs(point["values"]["b"] - 0.2) for point in found[20:]) / 20

    assert distance("tpe") < 0.75 * distance("random")


def test_several_objectives_and_failures_are_told_to_optuna() -> None:
    config = TuneConfig(param_space={"a": "0..99999"}, objectives="elbo,mig_sup")
    failed = Trial(1, {}, "failed", "out of memory", reports=[(1, {"elbo": 1.0, "mig_sup": 0.5})])
    source = OptunaSearcher(config, [], point_key, lambda *_: None, lambda number: failed if number == 1 else None)
    results: list[dict[str, float] | None] = [{"elbo": 2.0, "mig_sup": 0.1}, {"elbo": 3.0, "mig_sup": 1.0}, None]
    results += [{"elbo": 1.0}, {"elbo": float("nan"), "mig_sup": 1.0}]
    for number, result in enumerate(results):
        source.suggest(str(number))
        source.on_trial_complete(str(number), result, error=result is None)
    states = [(trial.state.name, trial.values) for trial in source._study.trials]
    assert states == [("COMPLETE", [2.0, 0.1])] + [("FAIL", None)] * 4


def test_points_that_name_one_training_are_one() -> None:
    config = TuneConfig(param_space={"a": "0.001/1e-3/0.002"}, algorithm="grid")
    source = OptunaSearcher(config, [], lambda values: str(float(values["a"])), lambda *_: None, lambda number: None)
    assert [point["values"]["a"] for point in ask(source, 9)] == ["0.001", "0.002"]


def test_a_trial_that_cannot_be_begun_is_the_last() -> None:
    def begin(number: int, values: Values) -> None:
        if number == 2:
            raise UserError("another command is at work")

    source = OptunaSearcher(TuneConfig(param_space={"a": "0..9"}), [], point_key, begin, lambda number: None)
    assert len(ask(source, 9)) == 2
    assert str(source.error) == "another command is at work"
    assert not source.exhausted
