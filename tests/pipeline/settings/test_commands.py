"""What MLflow keeps of a run repeats it."""

import shlex
from pathlib import Path

import pytest

from pipeline.settings.commands import (
    changed_settings,
    evaluation_command,
    run_name,
    run_params,
    settings_yaml,
    training_command,
)
from pipeline.settings.parse import read_config
from pipeline.settings.schema import run_settings

OVERRIDES = [
    [],
    ["preset=fashion-mnist", "model=hvae", "seed=3"],
    ["data=images", "data.root=/some pictures", "data.on_error=skip", "objective.beta=1,2,3"],
    ["preset=release-svhn"],
    ["preset=claim-hvae", "model=lvae", "model.batch_norm_heads=true"],
    ["evaluate.model_name=foo", "evaluate.seed=3", "evaluate.gibbs_steps=1,2", "storage_path=s3://bucket/prefix"],
    [
        "workspace=/some where",
        "tracking.uri=http://127.0.0.1:5000",
        "tracking.experiment=a b",
        "evaluate.champion_metric=mig",
        "data.factors=hue,digit",
    ],
]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_training_command_and_settings_yaml_repeat_the_run(overrides: list[str], tmp_path: Path) -> None:
    config = read_config(overrides)
    python, flag, module, *arguments = shlex.split(training_command(config))
    assert (python, flag, module) == ("python", "-m", "pipeline.run")
    repeated = read_config(arguments)
    assert run_settings(repeated) == run_settings(config)
    assert (repeated.data.factors, repeated.data.on_error) == (config.data.factors, config.data.on_error)
    for name in ("evaluate", "tracking", "workspace", "storage_path"):
        assert getattr(repeated, name) == getattr(config, name)
    path = tmp_path / "settings.yaml"
    path.write_text(settings_yaml(run_settings(config)))
    assert run_settings(read_config([f"preset={path}"])) == run_settings(config)


def test_training_command_omits_defaults() -> None:
    assert training_command(read_config([])) == "python -m pipeline.run stage=shard,train,evaluate"
    config = read_config(["train.steps=7", "data=fashion_mnist"])
    assert changed_settings(config) == {"data": "fashion_mnist", "train.steps": "7"}


def test_run_params_have_depth_and_capacity() -> None:
    params = run_params(read_config(["model.latent_dims=2,3", "train.adam_beta2=0.9"]), 1234)
    assert {
        "capacity.depth": "2",
        "capacity.latents": "5",
        "capacity.parameters": "1234",
        "train.adam_beta2": "0.9",
    }.items() <= params.items()
    assert len(params) < 15
    assert sorted(params)[:3] == ["capacity.depth", "capacity.latents", "capacity.parameters"]
    assert run_name(read_config(["model.latent_dims=2,3", "seed=4"])) == "vlae-2-3-digits-seed4"


def test_evaluation_command_repeats_the_evaluation() -> None:
    config = read_config(["stage=evaluate", "model_uri=models:/a@champion", "data.num_images=70", "evaluate.seed=2"])
    repeated = read_config(shlex.split(evaluation_command(config, "models:/a/3"))[3:])
    assert (repeated.stage, repeated.model_uri) == (("shard", "evaluate"), "models:/a/3")
    assert (repeated.data, repeated.evaluate) == (config.data, config.evaluate)
