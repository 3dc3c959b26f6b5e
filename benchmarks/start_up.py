"""What comes before the first step, by part: each time in fresh processes.

python -m benchmarks.start_up FOLDER DATASET    # one of those processes: a training of one step
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs.cluster.driver_loop
from benchmarks.harness import spread
from jobs.cluster.ray_cluster import cluster
from jobs.config import RayConfig, TrainConfig
from jobs.data.shard_reader import DataAccess
from jobs.events import Event, MetricPoint, TrainingResumed, WorkersStarted
from jobs.train import run_training
from jobs.training.state import TrainJob
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig

_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.02  # the product's quarter of a second would hide when messages arrive
_IMPORTED = ("torch", "ray.train.torch", "mlflow")
_IMPORTS = """
import importlib, json, sys, time
took = []
for name in sys.argv[1:]:
    start = time.perf_counter()
    importlib.import_module(name)
    took.append(time.perf_counter() - start)
print(json.dumps(took))
"""
_PARTS = {  # of a run, in their order
    WorkersStarted: "fit() until the worker is there",
    TrainingResumed: "data, model, checkpoint: until the loop starts",
    MetricPoint: "shards verified, first step, first point",
}
_CLUSTER, _END, _SHUTDOWN = "ray.init", "validation, checkpoint, end of fit()", "ray.shutdown"


def start_up(rounds: int, folder: Path, dataset: str) -> None:
    """Print the seconds of each part, and of them all."""
    seconds_by_part: dict[str, list[float]] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        start = time.perf_counter()
        _fresh("-c", "pass")
        parts = {"python": time.perf_counter() - start}
        parts |= zip((f"import {name}" for name in _IMPORTED), _fresh("-c", _IMPORTS, *_IMPORTED), strict=True)
        parts |= _fresh("-m", "benchmarks.start_up", str(folder / f"start-{number}"), dataset)
        for name, seconds in {**parts, "all": sum(parts.values())}.items():
            seconds_by_part.setdefault(name, []).append(seconds)
    for name, times in seconds_by_part.items():
        print(f"{name:50} {spread(times):>22} s")


def _fresh(*arguments: str) -> Any:
    """What a new process prints last, if it is JSON."""
    done = subprocess.run([sys.executable, *arguments], cwd=_ROOT, check=True, capture_output=True, text=True)  # noqa: S603  (ours)
    return json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout else None


def _run(folder: Path, dataset: str) -> dict[str, float]:
    """Seconds of the parts of one real training of one step."""
    jobs.cluster.driver_loop.POLL_SECONDS = _POLL_SECONDS
    job = TrainJob(
        VlaeConfig(),
        ObjectiveConfig(),
        ProgressiveConfig(),
        TrainConfig(steps=1),
        0,
        DataAccess(dataset, folder / "cache", 2**30),
        str(folder / "checkpoints"),
    )
    parts: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[name], last = now - last, now

    def see(messages: Sequence[Event]) -> None:
        for message in messages:
            name = _PARTS.get(type(message))
            if name and name not in parts:
                lap(name)

    with cluster(RayConfig()) as resources:
        lap(_CLUSTER)
        run_training(job, resources, folder / "ray", see)
        lap(_END)
    lap(_SHUTDOWN)
    return parts


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), sys.argv[2])))
