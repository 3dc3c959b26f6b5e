"""The search space as settings: valid and invalid spaces, and the settings of trials."""

import re
from pathlib import Path

import pytest

from jobs.cli import UsageError
from jobs.search.trials import Trial
from pipeline.plan import make_plan
from pipeline.settings.commands import search_command, training_command
from pipeline.settings.parse import read_config, searchable_keys
from pipeline.settings.schema import run_settings
from pipeline.settings.search_space import default_space, resolve_space, trial_config

SPACE = "tune.param_space.model.latent_dims=18/9,9"


def check(*overrides: str) -> None:
    resolve_space(read_config(overrides))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["tune.param_space.model.latent_dim=3"], "'tune.param_space.model.latent_dims'"),
        (["tune.param_space.train.num_workers=1/2"], "train.num_workers"),
        (["tune.param_space.train.steps=1/2"], "tune.steps"),
        (["tune.param_space.data.image_size=16/32"], "data.image_size"),
        (["tune.param_space.train.learning_rate=2..1"], "tune.param_space.train.learning_rate='2..1'"),
        (["tune.param_space.train.learning_rate=.1..3.0"], "tune.param_space.train.learning_rate=3.0"),
        ([SPACE, "tune.param_space.model=vlae/hvea"], "'hvae'"),
        ([SPACE, "tune.param_space.objective.beta=1,2,3"], "objective.beta"),
        ([SPACE, "tune.algorithm=grid", "tune.param_space.seed=0.5..2.5"], "tune.algorithm=grid"),
        ([SPACE, "tune.objectives=elbo,elbo"], "tune.objectives"),
        ([SPACE, "tune.objectives=elbo,fid"], "tune.objectives=fid"),
        ([SPACE, "tune.steps=2000"], "tune.steps=2000"),
        ([SPACE, "tune.param_space.model.likelihood=gaussian/laplace"], "tune.param_space.model.likelihood"),
        ([SPACE, "init_from=vlae-digits-0123456789ab"], "init_from="),
        ([SPACE, "model_uri=models:/digits/1"], "model_uri="),
    ],
)
def test_resolve_space_invalid_names_key(overrides: list[str], key: str) -> None:
    """The message names the key at fault, or the nearest valid one."""
    with pytest.raises(UsageError, match=re.escape(key)):
        check(*overrides, "stage=tune")


@pytest.mark.parametrize(
    ("overrides", "dims", "widths"),
    [
        ([], "18/9,9/4,4,10/4,4,5,5", "12/24/36"),
        (["model.latent_dims=3"], "3/1,2/1,1,1", "12/24/36"),  # four rungs need four latents
        (["model.latent_dims=2,2", "objective.beta=1,2", "model.width=2"], "2,2", "1/2/3"),  # a beta per rung
        (["model=vae", "model.width=9"], "18", "4/9/13"),
        (["progressive.stage_steps=700", "progressive.fade_steps=9"], "18/9,9/4,4,10", "12/24/36"),
    ],
)
def test_default_space_varies_depth_and_width(overrides: list[str], dims: str, widths: str) -> None:
    config = read_config([*overrides, "stage=tune"])
    assert default_space(config) == {"model.latent_dims": dims, "model.width": widths}
    assert resolve_space(config).tune.param_space == default_space(config)


def test_resolve_space_keeps_a_given_space() -> None:
    assert resolve_space(read_config([SPACE, "stage=tune"])).tune.param_space == {"model.latent_dims": "18/9,9"}
    assert resolve_space(read_config(["stage=train"])).tune.param_space == {}


def test_resolve_space_partly_valid_values_pass() -> None:
    """Each value must be valid with some values of the others, not with all."""
    check("stage=tune", "tune.param_space.model.latent_dims=9,9/6,6,6", "tune.param_space.objective.beta=1/2,1/3,2,1")
    check(
        "stage=tune",
        "model=hvae",
        "tune.param_space.model=lvae/hvae",
        "tune.param_space.model.batch_norm_heads=true/false",
    )


def test_preset_space_is_overridden(tmp_path: Path) -> None:
    """Overrides remove and add dimensions of the space of a preset."""
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "tune:\n  trials: 3\n  param_space:\n    model.latent_dims: [[18], [9, 9]]\n    model.width: [8, 16]\n"
    )
    assert read_config([f"preset={preset}"]).tune.param_space == {"model.latent_dims": "18/9,9", "model.width": "8/16"}
    config = read_config(
        [f"preset={preset}", "tune.param_space.model.width=", "tune.param_space.seed=0..9", "tune.trials=4"]
    )
    assert config.tune.param_space == {"model.latent_dims": "18/9,9", "seed": "0..9"}
    assert config.tune.trials == 4


def test_trial_config_is_that_of_a_training() -> None:
    """A trial is the training of the command, with its values and tune.steps steps."""
    overrides = ["tune.steps=90", "train.learning_rate=.01", "seed=3", "train.lr_warmup_steps=4"]
    config = read_config(["stage=tune", SPACE, *overrides])
    trial = trial_config(config, {"model.latent_dims": "9,9", "train.learning_rate": 0.02})
    plain = read_config(["model.latent_dims=9,9", "train.learning_rate=.02", "train.steps=90", *overrides[2:]])
    assert run_settings(trial) == run_settings(plain)
    assert trial.train.checkpoint_every == 10  # a ninth, where asha decides
    often = read_config(["stage=tune", SPACE, "train.checkpoint_every=3", *overrides])
    assert trial_config(often, {"seed": 4}).train.checkpoint_every == 3
    assert trial_config(config.model_copy(update={"stage": ("tune",)}), {"seed": 4}).seed == 4


def test_trial_config_other_model_keeps_common_settings() -> None:
    """A trial with another model has the settings of the command that both models have."""
    common = ["model.network=provlae", "model.width=12", "model.hidden_dims=32", "model.likelihood=bernoulli"]
    config = read_config(["stage=tune", "tune.param_space.seed=0..4", "model.latent_dims=2,2,2", *common])
    trial = trial_config(config, {"preset": "claim-hvae", "model.hidden_dims": 64})
    hvae = ["model=hvae", "model.latent_dims=10,5,3", "model.match_params=true", "model.match_latent_dims=3,5,10"]
    assert trial.model == read_config([*hvae, *common[:2], "model.hidden_dims=64", common[3]]).model
    lvae = trial_config(config, {"preset": "claim-lvae"}).model
    assert (lvae.name, lvae.norm, lvae.likelihood, lvae.hidden_dims) == ("lvae", "batch", "bernoulli", (32,))
    assert trial_config(config, {"model": "vae"}).model == read_config(["model=vae", *common]).model


def test_trial_config_other_model_own_settings() -> None:
    """Settings that only some models have go to those; settings per rung are not kept."""
    stack_only = ["model.match_params=true", "model.match_latent_dims=3,5,10", "model.batch_norm_heads=true"]
    stack = read_config(["model=hvae", *stack_only])
    lvae = trial_config(stack, {"model": "lvae"}).model
    assert lvae == read_config(["model=lvae", *stack_only]).model
    ladder = read_config(["model.hidden_dims=64,128,256", "model.width=8"])
    vae = trial_config(ladder, {"model": "vae"}).model
    assert (vae.hidden_dims, vae.width) == ((256,), 8)
    with pytest.raises(UsageError, match="'hvae'"):
        trial_config(stack, {"model": "hvea"})


def test_commands_repeat_trial_and_search() -> None:
    """The recorded commands give the settings of the trial and of the search again."""
    overrides = ["stage=shard,tune,train", SPACE, "tune.trials=5", "tune.objectives=elbo,mig_sup", "train.steps=90"]
    config = read_config(overrides)
    trial = trial_config(config, {"model.latent_dims": "9,9"})
    again = read_config(training_command(trial).split()[3:])
    assert run_settings(again) == run_settings(trial)
    assert again.stage == ("shard", "train", "evaluate")
    searched = read_config(search_command(config).split()[3:])
    assert searched.tune == config.tune
    assert run_settings(searched) == run_settings(config)


def test_searchable_keys_define_a_training() -> None:
    """Settings of execution and of the data cannot be searched."""
    keys = searchable_keys()
    assert {
        "model",
        "model.latent_dims",
        "model.batch_norm_heads",
        "objective.beta",
        "train.learning_rate",
        "seed",
    } <= set(keys)
    assert not {"train.steps", "train.num_workers", "train.device", "data", "data.image_size"} & set(keys)
    assert Trial(0, {"seed": 1}).key == '{"seed": 1}'


@pytest.mark.parametrize(
    ("stages", "waits"),
    [("shard,tune,evaluate", ["", "shard", "tune"]), ("shard,tune,train,evaluate", ["", "shard", "tune", "train"])],
)
def test_plan_names_stage_that_runs_before(stages: str, waits: list[str], tmp_path: Path) -> None:
    """The plan of a search names the stage that each stage waits for."""
    plan = make_plan(read_config([f"stage={stages}", SPACE, "tune.select=all", f"workspace={tmp_path}"]))
    matches = [re.match(r"after (\w+)", step.reason) for step in plan]
    assert [match[1] if match else "" for match in matches] == waits
