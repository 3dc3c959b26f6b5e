"""A command that is killed or stopped, and repeated."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import checkpoints, command, result_of, run, small, wait_for
from mlflow import MlflowClient
from servers.processes import descendants
from servers.processes import wait_for as wait_until

LONG = small(train__steps=300, train__checkpoint_every=50, train__log_every=10)


@pytest.mark.slow
def test_killed_command_resumes_to_equal_weights(tmp_path: Path) -> None:
    uninterrupted_folder, killed_folder = tmp_path / "uninterrupted", tmp_path / "killed"
    uninterrupted_folder.mkdir()
    killed_folder.mkdir()
    uninterrupted = result_of(run(LONG, uninterrupted_folder))
    process = subprocess.Popen(
        command(LONG), cwd=killed_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(checkpoints(killed_folder)) >= 2, process)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    resumed = result_of(run(LONG, killed_folder))
    assert resumed["stages"] == {"shard": "skipped", "train": "resumed", "evaluate": "done"}
    assert resumed["weights_sha256"] == uninterrupted["weights_sha256"]
    client = MlflowClient(f"sqlite:///{killed_folder}/ws/mlflow.db")
    experiment = client.get_experiment_by_name("vlae")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    steps = [point.step for point in client.get_metric_history(resumed["run_id"], "train/loss")]
    assert steps == list(range(10, 301, 10))


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "kill"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_signal_stops_the_command_and_its_processes(
    tmp_path: Path, signum: int, kill: Callable[[int, int], None]
) -> None:
    """Ctrl-C in a terminal reaches the process group, whose Ray processes ignore it; SIGTERM reaches the command."""
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
    kill(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped. Run the command again to continue."
    assert "Traceback" not in errors
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in tree), 60)
    assert result_of(run(LONG, tmp_path))["stages"]["train"] == "resumed"
