"""Overrides to settings: every error is one line that names the override and the fix."""

import re
from pathlib import Path

import pytest

from jobs.cli import UsageError
from pipeline.settings.help import help_text
from pipeline.settings.parse import PRESETS, apply_overrides, read_config, setting_keys
from pipeline.settings.schema import GROUPS, Config, run_settings


def test_read_config_without_overrides_is_the_main_job() -> None:
    config = read_config([])
    assert config.stage == ("shard", "train", "evaluate")
    assert (config.data.name, config.model.name) == ("digits", "vlae")
    assert config.workspace == Path.cwd() / "workspace"


def test_read_config_overrides_are_typed() -> None:
    config = read_config(
        [
            "stage=evaluate,shard",
            "model=hvae",
            "model.latent_dims=3,3,4",
            "train.steps=20000",
            "model.likelihood_scale=0.1",
            "seed=7",
        ]
    )
    assert config.stage == ("shard", "evaluate")
    assert config.model.name == "hvae"
    assert config.model.latent_dims == (3, 3, 4)
    assert (config.train.steps, config.model.likelihood_scale, config.seed) == (20000, 0.1, 7)
    assert read_config(["model.latent_dims=8"]).model.latent_dims == (8,)
    assert (
        read_config(["model.likelihood_scale=optimal", "model.likelihood=laplace"]).model.likelihood_scale == "optimal"
    )
    assert read_config(["objective.beta=4,1,1"]).objective.beta == (4, 1, 1)
    assert read_config(["data.cache_dir=none"]).data.cache_dir is None
    assert read_config(["storage_path=s3://bucket/a/b/"]).storage_path == "s3://bucket/a/b"
    assert read_config(["storage_path=here"]).storage_path == str(Path.cwd() / "here")


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["mode=vlae"], "mode"),
        (["model.latent_dim=3"], "model.latent_dim"),
        (["zzzzzz=3"], "zzzzzz"),
        (["train.steps=-1"], "train.steps=-1"),
        (["train.steps=many"], "train.steps=many"),
        (["model.latent_dims=3,0"], "model.latent_dims=0"),
        (["model.latent_dims="], "model.latent_dims="),
        (["objective.beta=nan"], "objective.beta=nan"),
        (["stage=shrad"], "stage=shrad"),
        (["stage="], "stage="),
        (["model=vae2"], "model=vae2"),
        (["data=images"], "data.root"),
        (["data.root=/x"], "data.root"),
        (["data=fashion_mnist", "data.num_images=5"], "data.num_images"),
        (["train.steps=1", "train.steps=2"], "train.steps"),
        (["--steps"], "--steps"),
        (["=3"], "=3"),
        (["train.batch_size=10"], "train.batch_size=10"),
        (["train.num_workers=9"], "train.num_workers=9"),
        (["preset=nope"], "preset=nope"),
        (["preset=release-mnits"], "preset=release-mnits"),
        (["preset=/nowhere/x.yaml"], "preset=/nowhere/x.yaml"),
        (["model.likelihood_scale=abc"], "model.likelihood_scale=abc"),
        (["model.likelihood_scale=2"], "model.likelihood_scale=2"),
        (["model.likelihood_scale=optimal"], "model.likelihood_scale=optimal"),
        (["model.hidden_dims=3,4"], "model.hidden_dims"),
        (["model=vae", "model.latent_dims=3,4"], "model.latent_dims=3,4"),
        (["model.match_params=true"], "model.match_params"),
        (["objective.beta=1,2"], "objective.beta"),
        (["objective.free_bits=1,2"], "objective.free_bits"),
        (["objective.mmd=1,2"], "objective.mmd"),
        (["objective.mmd=3", "model=hvae"], "objective.mmd"),
        (["objective.total_correlation=3", "model=lvae"], "objective.total_correlation"),
        (["progressive.stage_steps=9", "model=lvae"], "progressive.stage_steps=9"),
        (["model.likelihood=bernoulli", "model.likelihood_scale=0.3"], "model.likelihood_scale=0.3"),
        (["progressive.stage_steps=400"], "progressive.fade_steps=5000"),
        (["progressive.stage_steps=700", "progressive.fade_steps=200"], "train.steps=1500"),
        (["progressive.stage_steps=900", "progressive.fade_steps=0"], "train.steps=1500"),
        (["model.norm=batch", "train.batch_size=8", "train.num_workers=8"], "model.norm=batch"),
        (
            ["model=lvae", "model.batch_norm_heads=true", "train.batch_size=1", "train.num_microbatches=1"],
            "model.batch_norm_heads=true",
        ),
        (["evaluate.gibbs_steps=5,1"], "evaluate.gibbs_steps=5,1"),
        (["tracking.uri=http://me:secret@host"], "tracking.uri: "),
        (["tracking.uri=ftp://host"], "tracking.uri=ftp://host"),
        (["storage_path=http://host/x"], "storage_path=http://host/x"),
        (["storage_path=s3://me:secret@bucket/x"], "storage_path: "),
        (["storage_path=s3:/bucket"], "storage_path=s3:/bucket"),
        (["storage_path=s3://bucket/../x"], "storage_path=s3://bucket/../x"),
        (["data.encoding=jpg"], "data.encoding=jpg"),
        (["data.cache_bytes=5"], "data.cache_bytes=5"),
        (["workspace=a?b"], "workspace="),
        (["stage=train", "force=shard"], "force=shard"),
        (["stage=train", "model_uri=models:/a/1"], "model_uri=models:/a/1"),
        (["model_uri=a/1"], "model_uri=a/1"),
        (["data.image_size=30"], "data.image_size=30"),
    ],
)
def test_read_config_invalid_override_is_named_in_one_line(overrides: list[str], culprit: str) -> None:
    with pytest.raises(UsageError, match=re.escape(culprit)) as caught:
        read_config(overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 220


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("mode=vlae", "model"),
        ("model.latent_dim=3", "model.latent_dims"),
        ("stage=shrad", "shard"),
        ("preset=release-mnits", "release-mnist"),
    ],
)
def test_read_config_misspelled_override_offers_the_nearest(override: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"'{re.escape(nearest)}'"):
        read_config([override])


def test_read_config_preset_with_credentials_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("tracking: {uri: 'http://me:hunter2@host'}")
    with pytest.raises(UsageError, match=r"tracking\.uri") as caught:
        read_config([f"preset={preset}"])
    assert "hunter2" not in str(caught.value)


def test_read_config_overrides_replace_those_of_a_preset(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("model: hvae\nmodel.latent_dims: [5, 6]\ntrain:\n  steps: 77\n  batch_size: 32\n")
    config = read_config([f"preset={preset}", "train.steps=88"])
    assert config.model.name == "hvae"
    assert config.model.latent_dims == (5, 6)
    assert (config.train.steps, config.train.batch_size) == (88, 32)
    # The settings of the preset's model do not apply to another model.
    assert read_config(["model=vlae", f"preset={preset}"]).model.latent_dims == Config().model.latent_dims


@pytest.mark.parametrize(
    "content",
    ["steps: 3", "train: {stps: 3}", "- 3", "a: [", "train.steps: {a: 1}", "[" * 500, "x: 2020-13-01", "&a {x: *a}"],
)
def test_read_config_invalid_preset_is_named(tmp_path: Path, content: str) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text(content)
    with pytest.raises(UsageError, match=r"steps|train|preset="):
        read_config([f"preset={preset}"])


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_state_what_to_expect(path: Path) -> None:
    read_config([f"preset={path.stem}"])
    head = path.read_text().split("\n\n")[0]
    for line in ("python -m pipeline.run preset=" + path.stem, "# hardware:", "# time:", "# result:"):
        assert line in head


@pytest.mark.parametrize(
    "overrides", [[], ["model=hvae", "model.likelihood_scale=0.2"], ["data=fashion_mnist", "model.latent_dims=2,2"]]
)
def test_run_settings_as_overrides_repeat_the_run(overrides: list[str]) -> None:
    config = read_config(overrides)
    again = read_config([f"{key}={value}" for key, value in run_settings(config).items()])
    assert again == config
    assert run_settings(again) == run_settings(config)


def test_run_settings_ignore_how_a_job_runs() -> None:
    base = run_settings(read_config([]))
    assert run_settings(read_config(["train.num_workers=2", "train.checkpoint_every=7", "workspace=/x"])) == base
    assert run_settings(read_config(["train.steps=7"])) != base


def test_apply_overrides_typed_values_leave_the_rest() -> None:
    config = read_config(["seed=3", "train.steps=9"])
    changed = apply_overrides(config, {"model.latent_dims": (1, 2), "train.learning_rate": 0.5})
    assert changed.model.latent_dims == (1, 2)
    assert (changed.seed, changed.train.steps, changed.train.learning_rate) == (3, 9, 0.5)
    assert config.model.latent_dims == Config().model.latent_dims


def test_help_lists_every_key_with_a_description() -> None:
    text = help_text()
    lines = text.splitlines()
    for key in setting_keys():
        index = next((index for index, line in enumerate(lines) if line.split()[:1] == [key]), None)
        assert index is not None, key
        assert len(lines[index].split()) >= 2, key  # its type
        assert lines[index + 1].startswith(" " * 6), key
    for members in GROUPS.values():
        assert all(member in text for member in members)


@pytest.mark.parametrize("width", [60, 100])
def test_help_is_wrapped_without_losing_a_word(width: int) -> None:
    text = help_text(width=width)
    assert text.split() == help_text(width=10_000).split()
    descriptions = [line for line in text.splitlines() if line.startswith(" " * 6)]
    assert width - 20 < max(map(len, descriptions)) <= width


def test_help_of_a_section_lists_its_keys_only() -> None:
    keys = [line.split()[0] for line in help_text(["train"], 10_000).splitlines() if line.startswith("  train.")]
    assert keys == [key for key in setting_keys() if key.startswith("train.")]
    with pytest.raises(UsageError, match="--help trian: unknown section"):
        help_text(["trian"])
