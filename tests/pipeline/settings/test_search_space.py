"""The settings of a search: its space in words, what is refused, and the trials that they name."""

import re
import shutil
from pathlib import Path

import pytest

from jobs.cli import UsageError
from jobs.search.trials import Trial
from pipeline.dry_run import make_plan
from pipeline.searches import Search, check_space, trial_config
from pipeline.settings.commands import command_line, search_command
from pipeline.settings.parse import read_config, searchable_keys
from pipeline.settings.schema import run_settings
from pipeline.workspace import Workspace

SPACE = "tune.param_space.model.latent_dims=18/9,9"


def read(*words: str) -> None:
    check_space(read_config(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=tune"], "stage=tune needs a space to search, such as tune.param_space.model.latent_dims="),
        (["tune.param_space.model.latent_dim=3"], "did you mean 'tune.param_space.model.latent_dims'?"),
        (["tune.param_space.train.num_workers=1/2"], "'train.num_workers' is none"),
        (["tune.param_space.train.steps=1/2"], "the steps of a trial are tune.steps"),
        (["tune.param_space.data.image_size=16/32"], "'data.image_size' is none"),
        (["tune.param_space.train.learning_rate=2..1"], "tune.param_space.train.learning_rate='2..1' must go from"),
        (
            ["tune.param_space.train.learning_rate=.1..3.0"],
            "tune.param_space.train.learning_rate=3.0 goes with no other value",
        ),
        ([SPACE, "tune.param_space.model=vlae/hvea"], "did you mean 'hvae'?"),
        (
            [SPACE, "tune.param_space.objective.beta=1,2,3"],
            "goes with no other value of the space: objective.beta has 3",
        ),
        ([SPACE, "tune.algorithm=grid", "tune.param_space.seed=0.5..2.5"], "tune.algorithm=grid needs choices"),
        ([SPACE, "tune.objectives=elbo,elbo"], "names an objective twice"),
        ([SPACE, "tune.objectives=elbo,fid"], "tune.objectives=fid is not one of elbo, mig"),
        ([SPACE, "tune.steps=2000"], "tune.steps=2000 is more than train.steps=1500"),
        (
            [SPACE, "tune.param_space.model.likelihood=gaussian/laplace"],
            "ELBOs of several likelihoods cannot be compared",
        ),
        ([SPACE, "init_from=vlae-digits-0123456789ab"], "init_from= is of one training"),
        ([SPACE, "model_uri=models:/digits/1"], "is a trained model"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read(*words, *([] if "stage=tune" in words else ["stage=tune"]))


def test_values_that_go_with_some_others_are_a_space() -> None:
    read("stage=tune", "tune.param_space.model.latent_dims=9,9/6,6,6", "tune.param_space.objective.beta=1/2,1/3,2,1")
    read(
        "stage=tune",
        "model=hvae",
        "tune.param_space.model=lvae/hvae",
        "tune.param_space.model.batch_norm_heads=true/false",
    )


def test_a_preset_has_a_space_and_words_change_it(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "tune:\n  trials: 3\n  param_space:\n    model.latent_dims: [[18], [9, 9]]\n    model.width: [8, 16]\n"
    )
    assert read_config([f"preset={preset}"]).tune.param_space == {"model.latent_dims": "18/9,9", "model.width": "8/16"}
    config = read_config(
        [f"preset={preset}", "tune.param_space.model.width=", "tune.param_space.seed=0..9", "tune.trials=4"]
    )
    assert config.tune.param_space == {"model.latent_dims": "18/9,9", "seed": "0..9"}
    assert config.tune.trials == 4


def test_a_trial_is_the_training_of_its_values() -> None:
    words = ["tune.steps=90", "train.learning_rate=.01", "seed=3", "train.lr_warmup_steps=4"]
    config = read_config(["stage=tune", SPACE, *words])
    trial = trial_config(config, {"model.latent_dims": "9,9", "train.learning_rate": 0.02})
    plain = read_config(["model.latent_dims=9,9", "train.learning_rate=.02", "train.steps=90", *words[2:]])
    assert run_settings(trial) == run_settings(plain)
    assert trial.train.checkpoint_every == 10  # a ninth: asha looks there
    assert trial_config(config.model_copy(update={"stage": ("tune",)}), {"seed": 4}).seed == 4


def test_a_trial_of_another_model_has_what_the_command_says_of_every_model() -> None:
    said = ["model.network=provlae", "model.width=12", "model.hidden_dims=32", "model.likelihood=bernoulli"]
    config = read_config(["stage=tune", "tune.param_space.seed=0..4", "model.latent_dims=2,2,2", *said])
    trial = trial_config(config, {"preset": "claim-hvae", "model.hidden_dims": 64})
    hvae = ["model=hvae", "model.latent_dims=10,5,3", "model.match_params=true", "model.match_latent_dims=3,5,10"]
    assert trial.model == read_config([*hvae, *said[:2], "model.hidden_dims=64", said[3]]).model
    lvae = trial_config(config, {"preset": "claim-lvae"}).model
    assert (lvae.name, lvae.norm, lvae.likelihood, lvae.hidden_dims) == ("lvae", "batch", "bernoulli", (32,))
    assert trial_config(config, {"model": "vae"}).model == read_config(["model=vae", *said]).model


def test_what_two_models_share_that_others_lack_and_what_is_by_rung() -> None:
    said = ["model.match_params=true", "model.match_latent_dims=3,5,10", "model.batch_norm_heads=true"]
    stack = read_config(["model=hvae", *said])
    lvae = trial_config(stack, {"model": "lvae"}).model
    assert lvae == read_config(["model=lvae", *said]).model
    ladder = read_config(["model.hidden_dims=64,128,256", "model.width=8"])
    vae = trial_config(ladder, {"model": "vae"}).model
    assert (vae.hidden_dims, vae.width) == ((256,), 8)
    with pytest.raises(UsageError, match="did you mean 'hvae'"):
        trial_config(stack, {"model": "hvea"})


def test_the_command_of_a_trial_names_it_and_that_of_the_search_repeats_it() -> None:
    words = ["stage=shard,tune,train", SPACE, "tune.trials=5", "tune.objectives=elbo,mig_sup", "train.steps=90"]
    config = read_config(words)
    trial = trial_config(config, {"model.latent_dims": "9,9"})
    again = read_config(command_line(trial).split()[3:])
    assert run_settings(again) == run_settings(trial)
    assert again.stage == ("shard", "train", "evaluate")
    searched = read_config(search_command(config).split()[3:])
    assert searched.tune == config.tune
    assert run_settings(searched) == run_settings(config)


def test_only_what_defines_a_training_can_be_searched() -> None:
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


def test_a_search_among_presets_is_another_one_when_their_contents_change(
    digit_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = tmp_path / "mine.yaml"
    words = [
        "data.num_images=300", "data.image_size=16", "data.samples_per_task=120", "data.validation_fraction=0.1",
        "data.test_fraction=0.2", f"workspace={tmp_path}", "tune.param_space.preset=mine.yaml",
    ]  # fmt: skip
    preset.write_text("model.width: 8\n")
    workspace = Workspace(read_config(words))
    shutil.copytree(digit_dataset, str(workspace.data_url))
    folders = []
    for width in (8, 16, 8):
        preset.write_text(f"model.width: {width}\n")
        folders.append(Search(workspace).folder)
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize(
    ("stages", "waits"),
    [("shard,tune,evaluate", ["", "shard", "tune"]), ("shard,tune,train,evaluate", ["", "shard", "tune", "train"])],
)
def test_a_plan_says_what_each_stage_waits_for(stages: str, waits: list[str], tmp_path: Path) -> None:
    plan = make_plan(read_config([f"stage={stages}", SPACE, "tune.select=all", f"workspace={tmp_path}"]))
    found = [re.match(r"after (\w+)", step.reason) for step, _ in plan]
    assert [match[1] if match else "" for match in found] == waits
