"""Kill processes of a training at random times, and compare the result with an undisturbed training.

    PYTHONPATH=.:tests python tests/helpers/chaos.py [seed=0] [kills=20] [steps=4000]

A small model trains deterministically, with shards and checkpoints on a real S3 server, and curves on a real MLflow
server with PostgreSQL. It trains once undisturbed. Then it trains again, while SIGKILL ends workers, the command, its
whole process tree, MLflow and S3. Everything that a user would start again is started again, each time with another
number of workers. At the end weights, checkpoints and all points of the curves must be equal.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from servers.fixtures import s3_environment
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import descendants
from servers.s3 import S3Server

from jobs.cli import parse_overrides

WORKERS = (1, 2, 1, 4)  # number of workers by start of the command
VICTIMS = ("worker", "command", "tree", "mlflow", "s3")
LONGEST_PAUSE = 12.0  # seconds between two kills; a start takes about as long
LONGEST_OUTAGE = 4.0  # seconds until a killed server starts again


def overrides(steps: int, workers: int, storage: str, tracking: str) -> list[str]:
    """Return the overrides of the command."""
    settings = {
        "stage": "shard,train",
        "data.num_images": 600,
        "data.image_size": 16,
        "model.width": 4,
        "model.hidden_dims": 16,
        "model.latent_dims": "2,2,3",
        "objective.warmup_steps": 100,
        "train.deterministic": "true",
        "train.steps": steps,
        "train.batch_size": 16,
        "train.checkpoint_every": 100,
        "train.log_every": 30,
        "train.max_failures": 30,
        "train.num_workers": workers,
        "ray.num_cpus": 4,
        "workspace": "ws",
        "storage_path": storage,
        "tracking.uri": tracking,
        "output": "json",
    }
    return [f"{key}={value}" for key, value in settings.items()]


def name_of(pid: int) -> bytes:
    """Return the command line of a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Command:
    """The pipeline as a user starts it, in a folder of its own.

    Attributes:
        folder: Working folder.
        environment: Environment variables.
        overrides: Overrides for a number of workers.
        starts: Number of starts.
        process: Process of the last start.
        errors: Last line of stderr of each start that failed by itself.
    """

    folder: Path
    environment: dict[str, str]
    overrides: Callable[[int], list[str]]
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    errors: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start the command with the next number of workers."""
        workers = WORKERS[self.starts % len(WORKERS)]
        self.starts += 1
        command = [sys.executable, "-m", "pipeline.run", *self.overrides(workers)]
        errors = self.folder / f"stderr-{self.starts}"
        with (self.folder / "stdout").open("w") as out, errors.open("w") as err:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=err)

    def ended(self) -> bool:
        """Return whether the training is complete. A failed start is repeated, as its message asks."""
        assert self.process is not None
        code = self.process.poll()
        if code is None or code == 0:
            return code == 0
        text = (self.folder / f"stderr-{self.starts}").read_text()
        assert "Traceback" not in text, text
        if code > 0:
            self.errors.append(text.strip().splitlines()[-1])
            time.sleep(2)
        self.start()
        return False

    def kill(self, victim: str) -> bool:
        """Send SIGKILL to a worker, to the command alone, or to its process tree; return whether one was running."""
        assert self.process is not None
        if self.process.poll() is not None:
            return False
        below = descendants(self.process.pid)
        if victim == "worker":
            below = [pid for pid in below if name_of(pid).startswith(b"ray::RayTrainWorker")][:1]
        for pid in below[:1] if victim == "command" else below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim in ("command", "tree"):
            self.process.wait()
        return bool(below)

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command printed."""
        result: dict[str, Any] = json.loads((self.folder / "stdout").read_text().splitlines()[-1])
        return result


@contextmanager
def servers() -> Iterator[tuple[S3Server, MlflowServer]]:
    """Run an S3 server, and an MLflow server with PostgreSQL and artifacts on S3."""
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server())
        postgres = stack.enter_context(PostgresServer())
        artifacts = f"s3://{s3.make_bucket()}/mlflow"
        keys = s3_environment(s3, s3.endpoint)
        yield s3, stack.enter_context(MlflowServer(postgres.create_database("chaos"), artifacts, keys))


def history(tracking: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return all points of a run by metric, without the metrics of speed."""
    client = MlflowClient(tracking)
    names = sorted(name for name in client.get_run(run_id).data.metrics if "per_second" not in name)
    curves = {name: [(p.step, p.value) for p in client.get_metric_history(run_id, name)] for name in names}
    return {name: sorted(points) for name, points in curves.items()}


def finish(command: Command, seconds: float) -> dict[str, Any]:
    """Wait for the end of the training and return its result."""
    deadline = time.monotonic() + seconds
    while not command.ended():
        assert time.monotonic() < deadline, (command.folder / f"stderr-{command.starts}").read_text()
        time.sleep(0.2)
    return command.result()


def disturb(command: Command, s3: S3Server, mlflow: MlflowServer, kills: int, rng: random.Random) -> Counter[str]:
    """Kill `kills` processes, unless the training ends before, and return the number of kills by victim."""
    killed: Counter[str] = Counter()
    victims = [VICTIMS[index % len(VICTIMS)] for index in range(kills)]
    rng.shuffle(victims)
    while victims:
        wake = time.monotonic() + rng.uniform(0, LONGEST_PAUSE)
        while time.monotonic() < wake:
            if command.ended():
                return killed
            time.sleep(0.05)
        victim = victims[-1]
        if victim in ("mlflow", "s3"):
            server = mlflow if victim == "mlflow" else s3
            server.kill()
            time.sleep(rng.uniform(0, LONGEST_OUTAGE))
            server.restart()
        elif not command.kill(victim):
            continue  # none is running now
        killed[victims.pop()] += 1
        print(f"{killed.total()}: {victim}, start {command.starts}", flush=True)
    return killed


def chaos(seed: int, kills: int, steps: int, folder: Path) -> Counter[str]:
    """Train undisturbed and disturbed, compare the results, and return the number of kills by victim."""
    rng = random.Random(seed)
    with servers() as (s3, mlflow):
        bucket = s3.make_bucket()
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        environment = {**plain, **s3_environment(s3, s3.endpoint), "PYTHONPATH": str(Path(__file__).parents[2])}
        outcomes = []
        for name in ("undisturbed", "disturbed"):
            (folder / name).mkdir()
            storage = f"s3://{bucket}/{name}"
            make = partial(overrides, steps, storage=storage, tracking=mlflow.uri)
            command = Command(folder / name, environment, make)
            command.start()
            start_time = time.monotonic()
            killed = disturb(command, s3, mlflow, kills, rng) if name == "disturbed" else Counter[str]()
            result = finish(command, 1200)
            prefix = f"{name}/runs/{Path(result['checkpoint']).parents[1].name}/checkpoints/"
            listed = s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
            keys = sorted(entry["Key"].removeprefix(prefix) for entry in listed)
            names = [key for key in keys if not key.startswith("owner-")]  # numbered by the commands
            outcomes.append((result["weights_sha256"], names, history(mlflow.uri, result["run_id"])))
            print(
                f"{name}: {time.monotonic() - start_time:.0f} s, {command.starts} starts, {command.errors}", flush=True
            )
    (weights, checkpoints, curves), (disturbed_weights, disturbed_checkpoints, disturbed_curves) = outcomes
    assert disturbed_weights == weights
    assert disturbed_checkpoints == checkpoints
    assert disturbed_curves == curves
    points = sum(map(len, curves.values()))
    assert points > steps / 30 * 5
    print(f"seed {seed}: {killed.total()} kills {dict(killed)}, {points} points and weights {weights[:12]} are equal")
    return killed


if __name__ == "__main__":
    options = {"seed": 0, "kills": 20, "steps": 4000} | {k: int(v) for k, v in parse_overrides(sys.argv[1:]).items()}
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        chaos(**options, folder=Path(temporary))
