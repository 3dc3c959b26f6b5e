"""Commands in a workspace that is fresh, shared, moved or copied, and with environment variables of other tools."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import command, environment, relocate, result_of, run, small
from mlflow import MlflowClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace with shards and without a database."""
    folder = tmp_path_factory.mktemp("sharded")
    result_of(run(small(stage="shard"), folder))
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a workspace with a champion, and the result of its command."""
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, result_of(run(small(), folder))


def tracking_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'ws' / 'mlflow.db'}")


def test_command_after_twenty_kills_ends_well(sharded: Path, tmp_path: Path) -> None:
    """Kills, SIGTERM and Ctrl-C are spread over the first three seconds, in which the database is created."""
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    overrides = small(stage="train", workspace=tmp_path / "ws")
    program = [sys.executable, "-m", "helpers.kill_database", str(tmp_path / "ws"), "20", "3", *overrides]
    env = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(program, env=env, check=True, stdin=subprocess.DEVNULL)
    result = result_of(run(small(stage="train"), tmp_path))
    assert tracking_client(tmp_path).get_run(result["run_id"]).info.status == "FINISHED"
    assert not list((tmp_path / "ws").glob(".*"))


def test_two_first_commands_at_once_end_well(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    processes = [
        subprocess.Popen(
            command(small(stage="train", seed=seed, ray__num_cpus=1)),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    client = tracking_client(tmp_path)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.run_id for run in runs} == {json.loads(out.splitlines()[-1])["run_id"] for out, _ in outputs}


@pytest.mark.parametrize("change", ["move", "copy", "replace"])
def test_workspace_that_moved_is_used(evaluated: tuple[Path, dict[str, Any]], tmp_path: Path, change: str) -> None:
    """Its champion is evaluated and its training is resumed there, and nothing is written to the original."""
    original, folder = tmp_path / "original", tmp_path / "new place"
    shutil.copytree(evaluated[0], original)
    # The copy is the first move of this workspace: from then on its database names `original`.
    assert "moved or copied" in run(small(), original).stderr
    relocate(original, folder, change)
    before = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    skipped = run(small(), folder)
    assert result_of(skipped)["stages"] == {"shard": "skipped", "train": "skipped", "evaluate": "skipped"}
    assert skipped.stderr.count("moved or copied") == 1
    champion = result_of(run(small(stage="evaluate", model_uri="models:/digits@champion"), folder))
    assert champion["metrics"] == evaluated[1]["metrics"]
    client = tracking_client(folder)
    location = client.get_run(champion["run_id"]).info.artifact_uri
    assert location.startswith((folder / "ws" / "mlartifacts").as_uri())
    assert client.list_artifacts(champion["run_id"], "figures")
    if change == "move":
        (record,) = folder.glob("ws/runs/vlae-digits-*/train.json")
        record.unlink()
        resumed = result_of(run(small(stage="train", resume=record.parent.name), folder))
        assert (resumed["stages"], resumed["run_id"]) == ({"train": "resumed"}, evaluated[1]["run_id"])
    assert {path: path.stat().st_mtime_ns for path in original.rglob("*")} == before
    assert original.exists() == (change == "copy")


def test_environment_of_other_tools_changes_nothing(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    other = f"sqlite:///{tmp_path}/other.db"
    variables = {"MLFLOW_TRACKING_URI": other, "MLFLOW_REGISTRY_URI": other, "MLFLOW_EXPERIMENT_NAME": "other"}
    done = run(small(stage="train,evaluate"), tmp_path, **variables, RAY_TRAIN_V2_ENABLED="0", TUNE_RESULT_DIR="x")
    result_of(done)
    assert all(name in done.stderr for name in variables)
    assert {path.name for path in tmp_path.iterdir()} == {"ws"}
    assert set(tracking_client(tmp_path).get_registered_model("digits").aliases) == {"champion"}
