"""What is recorded of a run repeats it."""

import shlex
from pathlib import Path

import pytest

from pipeline.settings.commands import (
    changed_settings,
    command_line,
    evaluation_command,
    params,
    run_name,
    settings_file,
)
from pipeline.settings.parse import read_config
from pipeline.settings.schema import run_settings

COMMANDS = [
    [],
    ["preset=fashion-mnist", "model=hvae", "seed=3"],
    ["data=images", "data.root=/some pictures", "objective.beta=1,2,3"],
    ["preset=release-svhn"],
    ["preset=claim-hvae", "model=lvae", "model.batch_norm_heads=true"],
    ["evaluate.model_name=foo", "evaluate.seed=3", "evaluate.gibbs_steps=1,2", "storage_path=s3://bucket/there"],
    [
        "workspace=/some where",
        "tracking.uri=http://127.0.0.1:5000",
        "tracking.experiment=a b",
        "evaluate.champion_metric=mig",
    ],
]


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_and_the_settings_file_name_the_same_run(words: list[str], tmp_path: Path) -> None:
    config = read_config(words)
    python, flag, module, *again = shlex.split(command_line(config))
    assert (python, flag, module) == ("python", "-m", "pipeline.run")
    repeated = read_config(again)
    assert run_settings(repeated) == run_settings(config)
    for name in ("evaluate", "tracking", "workspace", "storage_path"):
        assert getattr(repeated, name) == getattr(config, name)
    file = tmp_path / "settings.yaml"
    file.write_text(settings_file(run_settings(config)))
    assert run_settings(read_config([f"preset={file}"])) == run_settings(config)


def test_only_what_is_not_the_default_is_in_the_command() -> None:
    assert command_line(read_config([])) == "python -m pipeline.run stage=shard,train,evaluate"
    config = read_config(["train.steps=7", "data=fashion_mnist"])
    assert changed_settings(config) == {"data": "fashion_mnist", "train.steps": "7"}


def test_params_hold_depth_and_capacity() -> None:
    found = params(read_config(["model.latent_dims=2,3", "train.adam_beta2=0.9"]), 1234)
    assert {
        "capacity.depth": "2",
        "capacity.latents": "5",
        "capacity.parameters": "1234",
        "train.adam_beta2": "0.9",
    }.items() <= found.items()
    assert len(found) < 15
    assert sorted(found)[:3] == ["capacity.depth", "capacity.latents", "capacity.parameters"]
    assert run_name(read_config(["model.latent_dims=2,3", "seed=4"])) == "vlae-2-3-digits-seed4"


def test_the_evaluation_of_a_registered_model_is_repeated() -> None:
    config = read_config(["stage=evaluate", "model_uri=models:/a@champion", "data.num_images=70", "evaluate.seed=2"])
    again = read_config(shlex.split(evaluation_command(config, "models:/a/3"))[3:])
    assert (again.stage, again.model_uri) == (("shard", "evaluate"), "models:/a/3")
    assert (again.data, again.evaluate) == (config.data, config.evaluate)
