"""The command: what it refuses, what it plans, and its stages on a small dataset."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import command, result_of, run, small
from mlflow import MlflowClient
from PIL import Image

from jobs.errors import UserError
from pipeline.settings.parse import read_config
from pipeline.workspace import Workspace


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["mode=vlae"], "'mode'"),
        (["model.latent_dim=3"], "'model.latent_dim'"),
        (["train.steps=-1"], "train.steps=-1"),
        (["stage=shrad"], "stage=shrad"),
        (["stage=evaluate", "model_uri=digits"], "model_uri=digits"),
        (["model_uri=models:/digits@champion"], "set stage=evaluate"),
    ],
)
def test_wrong_words(words: list[str], culprit: str, tmp_path: Path) -> None:
    done = run(words, tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert culprit in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (
            ["data=fashion_mnist", "data.root=/nowhere", "data.download=false"],
            "data.root=/nowhere lacks train-images-idx3-ubyte",
        ),
        (["data=images", "data.root=/nowhere"], "data.root=/nowhere is not a folder"),
        (["workspace=/proc/nowhere"], "workspace=/proc/nowhere cannot be written"),
        (["workspace=file/below"], "cannot be written"),
        (["stage=train"], "train needs the output of shard"),
        (["stage=evaluate"], "evaluate needs the output of train"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: list[str], culprit: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(words, tmp_path, http_proxy="http://127.0.0.1:9")  # no network
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 1
    assert culprit in errors[0]
    left = {path.parent.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"}
    assert left <= {"locks"}


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = run(small(dry_run="true"), tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"plan": {"shard": "run", "train": "run", "evaluate": "run"}}
    assert [line.split()[:2] for line in done.stderr.splitlines()[1:]] == [
        ["shard", "run"],
        ["train", "run"],
        ["evaluate", "run"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_what_is_missing(tmp_path: Path) -> None:
    done = run(["dry_run=true", "data=images", "data.root=/nowhere"], tmp_path)
    assert "its source is not here: data.root=/nowhere is not a folder" in done.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{' '.join(command(['--help']))} | head -1; {' '.join(command(['dry_run=true']))} | true",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_the_main_job_and_the_same_command_again(tmp_path: Path) -> None:
    words = small(stage="shard,train,evaluate")
    home = tmp_path / "home"
    home.mkdir()
    first = result_of(run(words, tmp_path, HOME=str(home)))
    assert not list(home.glob(".ray*"))
    assert first["stages"] == {"shard": "done", "train": "done", "evaluate": "done"}
    assert {"elbo", "bits_per_dim", "mig", "mig_sup", "kl/rung_2", "information/rung_0/hue"} <= set(first["scores"])
    all_of_it_is_in_mlflow(MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db"), first, tmp_path)
    again = run(words, tmp_path)
    assert result_of(again) == {**first, "stages": dict.fromkeys(first["stages"], "skipped")}
    assert again.stderr.count("done before") == 3


def all_of_it_is_in_mlflow(client: MlflowClient, first: dict[str, Any], folder: Path) -> None:
    found = client.get_run(first["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/elbo"] == pytest.approx(first["scores"]["elbo"])
    assert found.data.params["model.latent_dims"] == "2,2,3"
    assert [p.step for p in client.get_metric_history(first["run_id"], "train/loss")] == [5, 10, 15, 20]
    pictures = [artifact.path for artifact in client.list_artifacts(first["run_id"], "figures")]
    names = "blocks gibbs gibbs_curve information manifolds rates reconstructions samples"
    assert pictures == [f"figures/{name}.png" for name in names.split()]
    with Image.open(client.download_artifacts(first["run_id"], "figures/blocks.png", str(folder))) as picture:
        assert picture.width > 300
    artifacts = {artifact.path for artifact in client.list_artifacts(first["run_id"])}
    assert artifacts == {"figures", "explorer.html", "settings.yaml"}
    assert "figures%2Fblocks.png" in found.data.tags["mlflow.note.content"]

    champion = client.get_model_version_by_alias("digits", "champion")
    assert (champion.run_id, champion.tags["command"]) == (first["run_id"], found.data.tags["command"])
    kept = client.search_logged_models([found.info.experiment_id])
    assert sorted(int(model.params["step"]) for model in kept) == [10, 20]
    assert all("validation/elbo" in {metric.key for metric in model.metrics} for model in kept)

    # The recorded command and the recorded settings name the same run.
    command = shlex.split(found.data.tags["command"])[4:]  # without python -m pipeline.run stage=...
    settings = client.download_artifacts(first["run_id"], "settings.yaml", str(folder))
    for recorded in (command, [f"preset={settings}"]):
        words = ["stage=train", "workspace=ws", "output=json"]
        named = result_of(run([*(word for word in recorded if not word.startswith("workspace=")), *words], folder))
        assert (named["run_id"], named["stages"]) == (first["run_id"], {"train": "skipped"})


@pytest.mark.slow
def test_a_registered_model_on_its_own_and_on_other_shards(tmp_path: Path) -> None:
    trained = result_of(run(small(), tmp_path))
    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    again = result_of(run(small(stage="evaluate", model_uri="models:/digits@champion"), tmp_path))
    assert (again["scores"], again["weights_sha256"]) == (trained["scores"], trained["weights_sha256"])
    words = small(stage="shard,evaluate", model_uri="models:/digits/1", data__scene_seed=5)
    other = result_of(run(words, tmp_path))
    assert (other["model_uri"], other["weights_sha256"]) == ("models:/digits/1", trained["weights_sha256"])
    assert other["scores"]["elbo"] != trained["scores"]["elbo"]
    assert result_of(run(words, tmp_path))["stages"] == {"shard": "skipped", "evaluate": "skipped"}
    moved = small(stage="evaluate", model_uri="models:/digits@champion", data__scene_seed=5)
    assert "is models:/digits/1 still" in run(moved, tmp_path).stderr  # which is evaluated on these shards already
    # The model's page has its scores on both datasets.
    source = client.get_model_version("digits", "1").source.removeprefix("models:/")
    digests = {metric.dataset_digest for metric in client.get_logged_model(source).metrics if metric.key == "test/elbo"}
    assert len(digests) == 2
    found = client.get_run(other["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/elbo"] == pytest.approx(other["scores"]["elbo"])

    # Another model takes the alias: the same command evaluates that one.
    better = result_of(run(small(train__steps=60), tmp_path))
    assert better["model_uri"] == "models:/digits/2"
    client.set_registered_model_alias("digits", "champion", "2")
    second = result_of(run(moved, tmp_path))
    assert (second["model_uri"], second["weights_sha256"]) == ("models:/digits/2", better["weights_sha256"])

    missing = run(small(stage="evaluate", model_uri="models:/digits@best"), tmp_path)
    assert missing.returncode == 1
    assert "model_uri=models:/digits@best: the registry has no such version" in missing.stderr
    wide = run(small(stage="shard,evaluate", model_uri="models:/digits/1", data__image_size=32), tmp_path)
    assert wide.returncode == 1
    assert "the model takes images of (3, 16, 16)" in wide.stderr


@pytest.mark.slow
def test_seeds_are_compared_where_there_are_several(tmp_path: Path) -> None:
    first = result_of(run(small(), tmp_path))
    second = result_of(run(small(seed=1), tmp_path))
    assert "udr" not in first["scores"]
    assert 0 <= second["scores"]["udr"] <= 1


@pytest.mark.slow
def test_force_trains_anew_in_a_run_of_its_own(tmp_path: Path) -> None:
    words = small(model="hvae", model__latent_dims="3,2", stage="shard,train")
    first = result_of(run(words, tmp_path))
    forced = result_of(run([*words, "force=train"], tmp_path))
    assert forced["stages"] == {"shard": "skipped", "train": "done"}
    assert forced["run_id"] != first["run_id"]
    assert forced["weights_sha256"] == first["weights_sha256"]


@pytest.mark.slow
def test_force_shard_mends_a_damaged_dataset(tmp_path: Path) -> None:
    words = small(stage="shard")
    result_of(run(words, tmp_path))
    (manifest,) = tmp_path.glob("ws/shards/*/manifest.json")
    good = manifest.read_text()
    manifest.write_text(good[:-20])
    damaged = run(words, tmp_path)
    assert damaged.returncode == 1
    assert "force=shard" in damaged.stderr
    assert result_of(run([*words, "force=shard"], tmp_path))["stages"] == {"shard": "done"}
    assert manifest.read_text() == good


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    workspace = Workspace(read_config([f"workspace={tmp_path}"]))
    with workspace.lock("r"):
        with pytest.raises(UserError, match="another command is at work"), workspace.lock("r"):
            pass
        with workspace.lock("other"):
            pass
    with workspace.lock("r"):
        pass
    with (
        workspace.lock("d", shared=True),
        workspace.lock("d", shared=True),
        pytest.raises(UserError, match="another command is at work"),
        workspace.lock("d"),
    ):
        pass
