"""Words to settings: every mistake is one line that names the word and the mend."""

import re
from pathlib import Path

import pytest

from jobs.cli import UsageError
from pipeline.settings.help import help_text
from pipeline.settings.parse import PRESETS, apply, known_keys, read_config
from pipeline.settings.schema import GROUPS, Config, run_settings


def test_defaults_are_the_main_job() -> None:
    config = read_config([])
    assert config.stage == ("shard", "train", "evaluate")
    assert (config.data.name, config.model.name) == ("digits", "vlae")
    assert config.workspace == Path.cwd() / "workspace"


def test_words() -> None:
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
    ("words", "message"),
    [
        (["mode=vlae"], "unknown key 'mode'; did you mean 'model'?"),
        (["model.latent_dim=3"], "unknown key 'model.latent_dim'; did you mean 'model.latent_dims'?"),
        (["zzzzzz=3"], "unknown key 'zzzzzz'; --help lists every key"),
        (["train.steps=-1"], "train.steps=-1: input should be greater than or equal to 1"),
        (["train.steps=many"], "train.steps=many: input should be a valid integer"),
        (["model.latent_dims=3,0"], "model.latent_dims=0: input should be greater"),
        (["model.latent_dims="], "model.latent_dims=: input should be a valid integer"),
        (["objective.beta=nan"], "objective.beta=nan: input should be a finite number"),
        (["stage=shrad"], "stage=shrad is not one of shard, tune, train, evaluate; did you mean 'shard'?"),
        (["stage="], "stage= is not one of"),
        (["model=vae2"], "model=vae2 is not one of vlae, hvae, lvae, vae"),
        (["data=images"], "data.root is missing: set it to a folder of pictures"),
        (
            ["data.root=/x"],
            "'data.root' belongs to data=",
        ),
        (["data=fashion_mnist", "data.num_images=5"], "'data.num_images' belongs to data=digits"),
        (["train.steps=1", "train.steps=2"], "train.steps: given twice"),
        (["--steps"], "'--steps' is not key=value"),
        (["=3"], "'=3' is not key=value"),
        (["train.batch_size=10"], "train.batch_size=10 is no multiple of train.num_microbatches=8"),
        (["train.num_workers=9"], "train.num_workers=9 is more than train.num_microbatches=8"),
        (["preset=nope"], "preset=nope does not exist; --help lists them; a .yaml file is one too"),
        (["preset=release-mnits"], "preset=release-mnits does not exist; did you mean release-mnist, "),
        (
            ["model.likelihood_scale=abc"],
            "model.likelihood_scale=abc: must be a number above 0 and up to 1, or learned, or optimal",
        ),
        (["model.likelihood_scale=2"], "model.likelihood_scale=2: must be a number above 0"),
        (
            ["model.likelihood_scale=optimal"],
            "model.likelihood_scale=optimal needs model.likelihood=gaussian or laplace, not logistic",
        ),
        (["model.hidden_dims=3,4"], "model.hidden_dims has 2 numbers: give one, or one for each of the 3 rungs"),
        (["model=vae", "model.latent_dims=3,4"], "model.latent_dims=3,4: value should have at most 1 item"),
        (["model.match_params=true"], "'model.match_params' belongs to model=hvae|lvae|vae"),
        (["objective.beta=1,2"], "objective.beta has 2 numbers: give one, or one for each of the 3 rungs"),
        (["objective.free_bits=1,2"], "objective.free_bits has 2 numbers"),
        (["objective.mmd=1,2"], "objective.mmd has 2 numbers"),
        (["objective.mmd=3", "model=hvae"], "objective.mmd needs rungs that are independent given the image"),
        (["objective.total_correlation=3", "model=lvae"], "objective.total_correlation needs rungs that are"),
        (["progressive.stage_steps=9", "model=lvae"], "progressive.stage_steps adds the rungs of a ladder"),
        (["model.likelihood=bernoulli", "model.likelihood_scale=0.3"], "model.likelihood_scale=0.3 has no effect with"),
        (
            ["progressive.stage_steps=400"],
            "progressive.fade_steps=5000 is longer than a stage, progressive.stage_steps=400",
        ),
        (["progressive.stage_steps=700", "progressive.fade_steps=200"], "ends before all 3 rungs are in"),
        (
            ["model.norm=batch", "train.batch_size=8", "train.num_workers=8"],
            "norm=batch needs 2 images or more in each pass",
        ),
        (
            ["model=lvae", "model.batch_norm_heads=true", "train.batch_size=1", "train.num_microbatches=1"],
            "batch_norm_heads=true needs 2",
        ),
        (["evaluate.gibbs_steps=5,1"], "evaluate.gibbs_steps=5,1: must rise from one to the next"),
        (
            ["progressive.stage_steps=900", "progressive.fade_steps=0"],
            "train.steps=1500 ends before all 3 rungs are in",
        ),
        (["preset=/nowhere/x.yaml"], "preset=/nowhere/x.yaml does not exist"),
        (["tracking.uri=http://me:secret@host"], "must hold no credentials"),
        (["tracking.uri=ftp://host"], "must begin with http:// or https://"),
        (["storage_path=http://host/x"], "storage_path=http://host/x: must be a folder or s3://BUCKET/PREFIX"),
        (["storage_path=s3://me:secret@bucket/x"], "must be s3://BUCKET or s3://BUCKET/PREFIX; credentials come from"),
        (["storage_path=s3:/bucket"], "must be s3://BUCKET"),
        (["storage_path=s3://bucket/../x"], "must be s3://BUCKET"),
        (["data.encoding=jpg"], "data.encoding=jpg is not one of npy, png"),
        (["data.cache_bytes=5"], "data.cache_bytes=5: input should be greater"),
        (["workspace=a?b"], "must hold neither ? nor %"),
        (["stage=train", "force=shard"], "force=shard has no effect without that stage"),
        (["data.image_size=30"], "data.image_size=30: input should be a multiple of 4"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_config(words)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_credentials_are_not_repeated() -> None:
    uri = "tracking.uri=http://me:se/cret@host"
    for words in ([uri], [uri, uri], ["http://me:se/cret@host"], [f"x{uri}"]):
        with pytest.raises(UsageError) as caught:
            read_config(words)
        assert "cret" not in str(caught.value).replace("secret", "")


def test_words_override_a_preset(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("model: hvae\nmodel.latent_dims: [5, 6]\ntrain:\n  steps: 77\n  batch_size: 32\n")
    config = read_config([f"preset={preset}", "train.steps=88"])
    assert config.model.name == "hvae"
    assert config.model.latent_dims == (5, 6)
    assert (config.train.steps, config.train.batch_size) == (88, 32)
    # Another model: the preset's settings of its own model do not apply to it.
    assert read_config(["model=vlae", f"preset={preset}"]).model.latent_dims == Config().model.latent_dims


@pytest.mark.parametrize("content", ["steps: 3", "train: {stps: 3}", "- 3", "a: [", "train.steps: {a: 1}"])
def test_a_wrong_preset_is_named(tmp_path: Path, content: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(content)
    with pytest.raises(UsageError, match=r"did you mean|unknown key|mine\.yaml"):
        read_config([f"preset={preset}"])


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_compose_and_open_with_what_to_expect(path: Path) -> None:
    read_config([f"preset={path.stem}"])
    head = path.read_text().split("\n\n")[0]
    for word in ("python -m pipeline.run preset=" + path.stem, "# hardware:", "# time:", "# result:"):
        assert word in head


@pytest.mark.parametrize(
    "words", [[], ["model=hvae", "model.likelihood_scale=0.2"], ["data=fashion_mnist", "model.latent_dims=2,2"]]
)
def test_run_settings_are_a_command_that_repeats_the_run(words: list[str]) -> None:
    config = read_config(words)
    again = read_config([f"{key}={value}" for key, value in run_settings(config).items()])
    assert again == config
    assert run_settings(again) == run_settings(config)


def test_how_a_job_runs_does_not_change_what_it_is() -> None:
    base = run_settings(read_config([]))
    assert run_settings(read_config(["train.num_workers=2", "train.checkpoint_every=7", "workspace=/x"])) == base
    assert run_settings(read_config(["train.steps=7"])) != base


def test_apply_takes_typed_values_and_leaves_the_rest() -> None:
    config = read_config(["seed=3", "train.steps=9"])
    changed = apply(config, {"model.latent_dims": (1, 2), "train.learning_rate": 0.5})
    assert changed.model.latent_dims == (1, 2)
    assert (changed.seed, changed.train.steps, changed.train.learning_rate) == (3, 9, 0.5)
    assert config.model.latent_dims == Config().model.latent_dims


def test_help_lists_every_key_with_a_meaning() -> None:
    text = help_text()
    for key in known_keys():
        line = next((line for line in text.splitlines() if line.split()[:1] == [key]), None)
        assert line is not None, key
        assert len(line.split()) >= 4, line
    for members in GROUPS.values():
        assert all(member in text for member in members)
