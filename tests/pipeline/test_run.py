"""The command: what it refuses, what it plans, and its stages on a small dataset."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import command, environment, result_of, run, small
from mlflow import MlflowClient
from PIL import Image

from jobs.errors import UnavailableError, UserError
from pipeline import run as run_module
from pipeline.settings.parse import read_config
from pipeline.workspace import Workspace

FIGURES = ["blocks", "gibbs", "gibbs_curve", "information", "manifolds", "rates", "reconstructions", "samples"]


def tracking_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/ws/mlflow.db")


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["mode=vlae"], "mode"),
        (["model.latent_dim=3"], "model.latent_dim"),
        (["train.steps=-1"], "train.steps=-1"),
        (["stage=shrad"], "stage=shrad"),
        (["stage=evaluate", "model_uri=digits"], "model_uri=digits"),
        (["model_uri=models:/digits@champion"], "stage=evaluate"),
    ],
)
def test_command_invalid_override_exits_2_and_writes_nothing(
    overrides: list[str], culprit: str, tmp_path: Path
) -> None:
    process = run(overrides, tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    assert culprit in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "culprits"),
    [
        (
            ["data=fashion_mnist", "data.root=/nowhere", "data.download=false"],
            ["data.root=/nowhere", "train-images-idx3-ubyte"],
        ),
        (["data=images", "data.root=/nowhere"], ["data.root=/nowhere"]),
        (["workspace=/proc/nowhere"], ["workspace=/proc/nowhere"]),
        (["workspace=file/below"], ["workspace=", "file/below"]),
        (["stage=train"], ["stage=train", "stage=shard,train"]),
        (["stage=evaluate"], ["stage=evaluate", "stage=shard,train,evaluate"]),
        (["stage=evaluate", "model_uri=models:/digits/1"], ["stage=evaluate", "stage=shard,evaluate"]),
    ],
)
def test_command_that_cannot_run_exits_1_in_one_line(overrides: list[str], culprits: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = run(overrides, tmp_path, http_proxy="http://127.0.0.1:9")  # no network
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert all(culprit in line for culprit in culprits)
    folders = {path.parent.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"}
    assert folders <= {"locks"}


@pytest.mark.parametrize(
    ("error", "overrides", "ending"),
    [
        (UserError("x: invalid. Set y."), [], "Set y."),
        (UserError("x: failed. Check y.", retry=True), [], "Check y. Run the command again to continue."),
        (UnavailableError("x: failed. Check y."), [], "Run the command again to continue."),
        (
            UnavailableError("x: failed. Check y."),
            ["force=shard,train"],
            "Run the command again without force=shard,train to continue.",
        ),
        (OSError(28, "No space left on device", "x/y"), [], "Run the command again to continue."),
        (KeyboardInterrupt(), [], "stopped. Run the command again to continue."),
    ],
)
def test_main_error_with_retry_gets_the_hint(
    error: BaseException,
    overrides: list[str],
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "_execute", fail)
    monkeypatch.setattr(run_module.signal, "signal", lambda *_: None)
    assert run_module.main(overrides) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(ending)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    process = run(small(dry_run="true"), tmp_path)
    assert process.returncode == 0
    assert json.loads(process.stdout) == {"plan": {"shard": "run", "train": "run", "evaluate": "run"}}
    assert [line.split()[:2] for line in process.stderr.splitlines()[1:]] == [
        ["shard", "run"],
        ["train", "run"],
        ["evaluate", "run"],
    ]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_names_a_missing_source(tmp_path: Path) -> None:
    process = run(["dry_run=true", "data=images", "data.root=/nowhere"], tmp_path)
    assert process.returncode == 0
    assert "data.root=/nowhere" in process.stdout


def test_command_whose_reader_exits_prints_no_error(tmp_path: Path) -> None:
    process = subprocess.run(
        f"{' '.join(command(['--help']))} | head -1; {' '.join(command(['dry_run=true']))} | true",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert process.stderr == ""


@pytest.mark.slow
def test_main_job_is_recorded_and_repeated_as_skipped(tmp_path: Path) -> None:
    overrides = small(stage="shard,train,evaluate")
    home = tmp_path / "home"
    home.mkdir()
    first = result_of(run(overrides, tmp_path, HOME=str(home)))
    assert not list(home.glob(".ray*"))
    assert first["stages"] == {"shard": "done", "train": "done", "evaluate": "done"}
    assert {"elbo", "bits_per_dim", "mig", "mig_sup", "kl/rung_2", "information/rung_0/hue"} <= set(first["metrics"])
    check_tracking(tracking_client(tmp_path), first, tmp_path)
    repeated = run(overrides, tmp_path)
    assert result_of(repeated) == {**first, "stages": dict.fromkeys(first["stages"], "skipped")}
    skipped = [line.split()[0] for line in repeated.stderr.splitlines() if " skipped: " in line]
    assert skipped == ["shard", "train", "evaluate"]
    assert "models:/digits/1" in repeated.stderr  # also after a command that had nothing to do


def check_tracking(client: MlflowClient, result: dict[str, Any], folder: Path) -> None:
    """Check that MLflow has the curve, the figures, the models and the command of a run."""
    tracked = client.get_run(result["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/elbo"] == pytest.approx(result["metrics"]["elbo"])
    assert tracked.data.params["model.latent_dims"] == "2,2,3"
    assert [p.step for p in client.get_metric_history(result["run_id"], "train/loss")] == [5, 10, 15, 20]
    figures = [artifact.path for artifact in client.list_artifacts(result["run_id"], "figures")]
    assert figures == [f"figures/{name}.png" for name in FIGURES]
    with Image.open(client.download_artifacts(result["run_id"], "figures/blocks.png", str(folder))) as picture:
        assert picture.width > 300
    artifacts = {artifact.path for artifact in client.list_artifacts(result["run_id"])}
    assert artifacts == {"figures", "explorer.html", "settings.yaml"}
    assert "figures%2Fblocks.png" in tracked.data.tags["mlflow.note.content"]

    champion = client.get_model_version_by_alias("digits", "champion")
    assert (champion.run_id, champion.tags["command"]) == (result["run_id"], tracked.data.tags["command"])
    models = client.search_logged_models([tracked.info.experiment_id])
    assert sorted(int(model.params["step"]) for model in models) == [10, 20]
    assert all("validation/elbo" in {metric.key for metric in model.metrics} for model in models)

    # The recorded command and the recorded settings name the same run.
    recorded_command = shlex.split(tracked.data.tags["command"])[4:]  # without python -m pipeline.run stage=...
    settings = client.download_artifacts(result["run_id"], "settings.yaml", str(folder))
    for recorded in (recorded_command, [f"preset={settings}"]):
        overrides = [override for override in recorded if not override.startswith("workspace=")]
        repeated = result_of(run([*overrides, "stage=train", "workspace=ws", "output=json"], folder))
        assert (repeated["run_id"], repeated["stages"]) == (result["run_id"], {"train": "skipped"})


@pytest.mark.slow
def test_registered_model_is_evaluated_on_two_datasets(tmp_path: Path) -> None:
    trained = result_of(run(small(), tmp_path))
    client = tracking_client(tmp_path)
    same_data = result_of(run(small(stage="evaluate", model_uri="models:/digits@champion"), tmp_path))
    assert (same_data["metrics"], same_data["weights_sha256"]) == (trained["metrics"], trained["weights_sha256"])
    overrides = small(stage="shard,evaluate", model_uri="models:/digits/1", data__scene_seed=5)
    other = result_of(run(overrides, tmp_path))
    assert (other["model_uri"], other["weights_sha256"]) == ("models:/digits/1", trained["weights_sha256"])
    assert other["metrics"]["elbo"] != trained["metrics"]["elbo"]
    assert result_of(run(overrides, tmp_path))["stages"] == {"shard": "skipped", "evaluate": "skipped"}
    moved = small(stage="evaluate", model_uri="models:/digits@champion", data__scene_seed=5)
    assert "is still models:/digits/1" in run(moved, tmp_path).stderr  # it was evaluated on these shards before
    # The model's page has its metrics on both datasets.
    source = client.get_model_version("digits", "1").source.removeprefix("models:/")
    digests = {metric.dataset_digest for metric in client.get_logged_model(source).metrics if metric.key == "test/elbo"}
    assert len(digests) == 2
    tracked = client.get_run(other["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/elbo"] == pytest.approx(other["metrics"]["elbo"])

    # Another model takes the alias: the same command evaluates the other model.
    better = result_of(run(small(train__steps=60), tmp_path))
    assert better["model_uri"] == "models:/digits/2"
    client.set_registered_model_alias("digits", "champion", "2")
    second = result_of(run(moved, tmp_path))
    assert (second["model_uri"], second["weights_sha256"]) == ("models:/digits/2", better["weights_sha256"])

    missing = run(small(stage="evaluate", model_uri="models:/digits@best"), tmp_path)
    assert missing.returncode == 1
    assert "model_uri=models:/digits@best" in missing.stderr
    wide = run(small(stage="shard,evaluate", model_uri="models:/digits/1", data__image_size=32), tmp_path)
    assert wide.returncode == 1
    assert "(3, 16, 16)" in wide.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_force_evaluate_repairs_a_damaged_model(tmp_path: Path) -> None:
    trained = result_of(run(small(), tmp_path))
    registered = small(stage="evaluate", model_uri="models:/digits@champion")
    files = [path for path in tmp_path.glob("ws/mlartifacts/models/*/artifacts/**/*") if path.is_file()]
    assert {"MLmodel", "checkpoint.json", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    damaged = run(registered, tmp_path)
    assert damaged.returncode == 1
    assert trained["run_id"] in damaged.stderr.splitlines()[-1]
    repaired = run(small(stage="evaluate", force="evaluate"), tmp_path)
    assert result_of(repaired)["model_uri"] == "models:/digits/1"
    assert "repaired the model in MLflow: " in repaired.stderr
    result_of(run(registered, tmp_path))


@pytest.mark.slow
def test_second_seed_is_compared_with_the_first(tmp_path: Path) -> None:
    first = result_of(run(small(), tmp_path))
    second = result_of(run(small(seed=1), tmp_path))
    assert "udr" not in first["metrics"]
    assert 0 <= second["metrics"]["udr"] <= 1


@pytest.mark.slow
def test_force_train_makes_another_run_with_equal_weights(tmp_path: Path) -> None:
    overrides = small(model="hvae", model__latent_dims="3,2", stage="shard,train")
    first = result_of(run(overrides, tmp_path))
    forced = result_of(run([*overrides, "force=train"], tmp_path))
    assert forced["stages"] == {"shard": "skipped", "train": "done"}
    assert forced["run_id"] != first["run_id"]
    assert forced["weights_sha256"] == first["weights_sha256"]


@pytest.mark.slow
def test_force_shard_replaces_a_damaged_dataset(tmp_path: Path) -> None:
    overrides = small(stage="shard")
    result_of(run(overrides, tmp_path))
    (manifest,) = tmp_path.glob("ws/shards/*/manifest.json")
    content = manifest.read_text()
    manifest.write_text(content[:-20])
    damaged = run(overrides, tmp_path)
    assert damaged.returncode == 1
    assert "force=shard" in damaged.stderr
    assert result_of(run([*overrides, "force=shard"], tmp_path))["stages"] == {"shard": "done"}
    assert manifest.read_text() == content


def test_lock_is_exclusive_unless_shared(tmp_path: Path) -> None:
    workspace = Workspace(read_config([f"workspace={tmp_path}"]))
    with workspace.lock("r"):
        with pytest.raises(UserError, match=str(tmp_path)), workspace.lock("r"):
            pass
        with workspace.lock("other"):
            pass
    with workspace.lock("r"):
        pass
    with (
        workspace.lock("d", shared=True),
        workspace.lock("d", shared=True),
        pytest.raises(UserError, match=str(tmp_path)),
        workspace.lock("d"),
    ):
        pass
    (tmp_path / "locks" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="link"), workspace.lock("link"):
        pass
    assert not (tmp_path / "other").exists()
