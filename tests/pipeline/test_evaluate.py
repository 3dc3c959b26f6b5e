"""What the stages evaluate and tune refuse before a training, and the notes of the run's description."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.datasets import open_split

from jobs.data.sources.base import Factor
from jobs.errors import UserError
from pipeline.run_page import description
from pipeline.settings.parse import read_config
from pipeline.stages.evaluate import check_evaluation
from pipeline.stages.tune import check_objectives


def check(dataset: Path, *overrides: str) -> None:
    session = SimpleNamespace(config=read_config(overrides), dataset=open_split(dataset, "test").manifest)
    check_evaluation(session)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.factors=huee"], "data.factors=huee: .*'hue'"),
        (["data.factors=hue", "evaluate.label_factor=digit"], "evaluate.label_factor=digit"),
        (["data.factors=hue", "evaluate.champion_metric=mig_sup"], "champion_metric=mig_sup: .* 2 .* 1 "),
        (["evaluate.num_images=19", "evaluate.champion_metric=mig"], "champion_metric=mig: .* 20 .* 19 "),
    ],
)
def test_check_evaluation_impossible_is_refused(digit_dataset: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(digit_dataset, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.factors=hue,digit", "evaluate.label_factor=digit", "evaluate.champion_metric=mig_sup"],
        ["evaluate.num_images=20", "evaluate.champion_metric=mig"],
        ["evaluate.num_images=10"],
        ["data.factors="],
    ],
)
def test_check_evaluation_possible_passes(digit_dataset: Path, overrides: list[str]) -> None:
    check(digit_dataset, *overrides)


@pytest.mark.parametrize(
    ("objective", "images", "message"),
    [
        ("elbo", 0, r"data\.validation_fraction"),
        ("mig", 19, "objectives=mig: .* 20 .* 19 "),
        ("mig_sup", 20, "objectives=mig_sup: .* 1"),
    ],
)
def test_check_objectives_impossible_is_refused(objective: str, images: int, message: str) -> None:
    config = read_config(["stage=tune", "tune.param_space.seed=0..9", f"tune.objectives={objective}"])
    dataset = SimpleNamespace(num_samples=lambda _: images, select_factors=lambda _: [Factor("hue", (0, 1))])
    with pytest.raises(UserError, match=message):
        check_objectives(SimpleNamespace(config=config, dataset=dataset))  # type: ignore[arg-type]


def test_description_lists_what_is_left_out() -> None:
    page = description("run", {"elbo": -1.0}, "command", ["left out: mig"])
    assert "\n- left out: mig\n\n" in page
