"""The command as a user types it, in a process of its own, and words for a job of seconds."""

import json
import os
import subprocess
import sys
import time
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


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("ws/runs/*/checkpoints/step-*"))
