"""The command as a user runs it, in a process of its own, and overrides of a job that takes seconds."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY: dict[str, object] = {
    "data.num_images": 600,
    "data.image_size": 16,
    "data.samples_per_task": 200,
    "model.width": 4,
    "model.hidden_dims": 16,
    "model.latent_dims": "2,2,3",
    "objective.warmup_steps": 10,
    "train.batch_size": 16,
    "evaluate.num_images": 60,
    "evaluate.iwae_samples": 2,
    "evaluate.classifier_steps": 20,
    "evaluate.gibbs_steps": 1,
    "output": "json",
}
SMALL: dict[str, object] = TINY | {
    "train.steps": 20,
    "train.checkpoint_every": 10,
    "train.log_every": 5,
    "ray.num_cpus": 2,
    "workspace": "ws",
}


def environment() -> dict[str, str]:
    """Return the environment of a user, without what `conftest` and MLflow set for the tests' own process."""
    own = ("RAY_", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def relocate(workspace: Path, target: Path, change: str) -> None:
    """Move a workspace, copy it, or copy it and remove the original (`replace`)."""
    if change == "move":
        workspace.rename(target)
    else:
        shutil.copytree(workspace, target)
    if change == "replace":
        shutil.rmtree(workspace)


def small(**changes: object) -> list[str]:
    """Return the overrides of a small job, with changes such as `train__steps=5` for train.steps=5."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def command(overrides: list[str]) -> list[str]:
    """Return the command as a list of arguments."""
    return [sys.executable, "-m", "pipeline.run", *overrides]


def run(overrides: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, with more environment variables."""
    env = {**environment(), **variables}
    return subprocess.run(command(overrides), capture_output=True, text=True, cwd=folder, env=env, check=False)


def result_of(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object that a successful command printed."""
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until a condition is true while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders of all runs below the folder that the command runs in."""
    return sorted(folder.glob("ws/runs/*/checkpoints/step-*"))
