"""The command as a user types it, in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from servers.processes import descendants

from jobs.data.sources.config import DEBIAN_FASHION_MNIST
from jobs.errors import UserError
from pipeline.settings import read_config
from pipeline.workspace import Workspace

SMALL: dict[str, object] = {
    "data.num_images": 600,
    "data.image_size": 16,
    "data.samples_per_task": 200,
    "model.width": 4,
    "model.hidden": 16,
    "model.latent_dims": "2,2,3",
    "objective.warmup_steps": 10,
    "train.steps": 20,
    "train.batch_size": 16,
    "train.checkpoint_every": 10,
    "train.log_every": 5,
    "evaluate.num_images": 60,
    "evaluate.iw_samples": 2,
    "evaluate.classifier_steps": 20,
    "evaluate.gibbs_steps": 1,
    "ray.num_cpus": 2,
    "workspace": "ws",
    "output": "json",
}


def environment() -> dict[str, str]:
    """As a user has it; `conftest` turns Ray's authentication off for the tests' own process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def small(**changes: object) -> list[str]:
    """The words of a job of seconds; `train__steps=5` stands for train.steps=5."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "pipeline.run", *words]


def run(words: list[str], folder: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(words), capture_output=True, text=True, cwd=folder, env={**environment(), **changed}, check=False
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


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
            ["data=fashion_mnist", "data.folder=/nowhere", "data.download=false"],
            "data.folder=/nowhere lacks train-images-idx3-ubyte",
        ),
        (["data=images", "data.folder=/nowhere"], "data.folder=/nowhere is not a folder"),
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
    done = run(["dry_run=true", "data=images", "data.folder=/nowhere"], tmp_path)
    assert "its source is not here: data.folder=/nowhere is not a folder" in done.stdout


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

    client = MlflowClient(f"sqlite:///{tmp_path}/ws/mlflow.db")
    found = client.get_run(first["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/elbo"] == pytest.approx(first["scores"]["elbo"])
    assert found.data.params["model.latent_dims"] == "2,2,3"
    assert [p.step for p in client.get_metric_history(first["run_id"], "train/loss")] == [5, 10, 15, 20]
    pictures = [artifact.path for artifact in client.list_artifacts(first["run_id"], "figures")]
    names = "blocks gibbs gibbs_curve information manifolds rates reconstructions samples"
    assert pictures == [f"figures/{name}.png" for name in names.split()]
    with Image.open(client.download_artifacts(first["run_id"], "figures/blocks.png", str(tmp_path))) as picture:
        assert picture.width > 300
    artifacts = {artifact.path for artifact in client.list_artifacts(first["run_id"])}
    assert artifacts == {"figures", "explorer.html", "settings.yaml"}
    assert "figures%2Fblocks.png" in found.data.tags["mlflow.note.content"]

    champion = client.get_model_version_by_alias("digits", "champion")
    assert (champion.run_id, champion.tags["command"]) == (first["run_id"], found.data.tags["command"])
    kept = client.search_logged_models([found.info.experiment_id])
    assert sorted(int(model.params["step"]) for model in kept) == [10, 20]
    assert all("validation/elbo" in {metric.key for metric in model.metrics} for model in kept)

    again = run(words, tmp_path)
    assert result_of(again) == {**first, "stages": dict.fromkeys(first["stages"], "skipped")}
    assert again.stderr.count("done before") == 3

    # The recorded command and the recorded settings name the same run.
    command = shlex.split(found.data.tags["command"])[4:]  # without python -m pipeline.run stage=...
    settings = client.download_artifacts(first["run_id"], "settings.yaml", str(tmp_path))
    for recorded in (command, [f"preset={settings}"]):
        words = ["stage=train", "workspace=ws", "output=json"]
        named = result_of(run([*(word for word in recorded if not word.startswith("workspace=")), *words], tmp_path))
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


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = small(train__steps=300, train__checkpoint_every=50, train__log_every=10)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("ws/runs/*/checkpoints/step-*"))


@pytest.mark.slow
def test_kill_9_of_the_whole_tree_and_the_same_command(tmp_path: Path) -> None:
    whole_folder, killed_folder = tmp_path / "whole", tmp_path / "killed"
    whole_folder.mkdir()
    killed_folder.mkdir()
    whole = result_of(run(LONG, whole_folder))
    process = subprocess.Popen(
        command(LONG), cwd=killed_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(checkpoints(killed_folder)) >= 2, process)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    resumed = result_of(run(LONG, killed_folder))
    assert resumed["stages"] == {"shard": "skipped", "train": "resumed", "evaluate": "done"}
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    client = MlflowClient(f"sqlite:///{killed_folder}/ws/mlflow.db")
    experiment = client.get_experiment_by_name("vlae")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    steps = [point.step for point in client.get_metric_history(resumed["run_id"], "train/loss")]
    assert steps == list(range(10, 301, 10))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kill"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    tmp_path: Path, number: int, kill: Callable[[int, int], None]
) -> None:
    """A terminal tells the whole group, which Ray's processes ignore; a supervisor tells the command."""
    process = subprocess.Popen(
        command(LONG),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: checkpoints(tmp_path), process)
    tree = descendants(process.pid)
    kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped; the same command goes on where this one was"
    assert "Traceback" not in errors
    time.sleep(5)
    assert [pid for pid in tree if Path(f"/proc/{pid}").exists()] == []
    assert result_of(run(LONG, tmp_path))["stages"]["train"] == "resumed"


@pytest.mark.slow
def test_force_trains_anew_in_a_run_of_its_own(tmp_path: Path) -> None:
    words = small(model="hvae", model__latent_dims="3,2", stage="shard,train")
    first = result_of(run(words, tmp_path))
    forced = result_of(run([*words, "force=train"], tmp_path))
    assert forced["stages"] == {"shard": "skipped", "train": "done"}
    assert forced["run_id"] != first["run_id"]
    assert forced["weights_sha256"] == first["weights_sha256"]


@pytest.mark.slow
def test_a_folder_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["file,kind"]
    for number in range(120):
        name = f"{'cats' if number % 2 else 'dogs'}/{number}.png"
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + number % 7, 24, 3), dtype=np.uint8)).save(path)
        rows.append(f"{name},{path.parent.name}")
    (tmp_path / "pictures" / "factors.csv").write_text("\n".join(rows))
    settings = {key: value for key, value in SMALL.items() if key not in ("data.num_images", "data.samples_per_task")}
    words = [f"{key}={value}" for key, value in settings.items()] + ["data=images", "data.folder=pictures"]
    first = result_of(run(words, tmp_path))
    assert "information/rung_2/kind" in first["scores"]
    assert "mig_sup" not in first["scores"]  # one factor: there is no gap between two
    # Without the pictures the shards are still there; with another picture they are not those of the folder.
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    assert set(result_of(run(words, tmp_path))["stages"].values()) == {"skipped"}
    (tmp_path / "elsewhere").rename(tmp_path / "pictures")
    (tmp_path / "pictures" / "cats" / "1.png").write_bytes(b"no picture")
    broken = run(words, tmp_path)
    assert broken.returncode == 1
    assert "1.png cannot be read as a picture" in broken.stderr.splitlines()[-1]
    assert list(tmp_path.glob("ws/shards/*/.partial-*")) == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (DEBIAN_FASHION_MNIST / "t10k-images-idx3-ubyte.gz").exists() and "CI" not in os.environ,
    reason="Debian's dataset-fashion-mnist is not installed",
)
@pytest.mark.parametrize("model", ["vlae", "hvae"])
def test_the_real_fashion_mnist(tmp_path: Path, model: str) -> None:
    settings = {key: value for key, value in SMALL.items() if not key.startswith("data.")}
    words = [f"{key}={value}" for key, value in settings.items()] + ["data=fashion_mnist", f"model={model}"]
    result = result_of(run(words, tmp_path))
    assert set(result["stages"].values()) == {"done"}
    assert 0 < result["scores"]["bits_per_dim"] < 8.5
    assert result["scores"]["mig"] >= 0


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
