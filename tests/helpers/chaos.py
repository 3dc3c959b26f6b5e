"""Kill what trains, at random instants, and see whether the result knows of it.

    PYTHONPATH=.:tests python tests/helpers/chaos.py [seed=0] [kills=20] [steps=4000]

Exact training of a small model, shards and checkpoints on a real S3 server, curves on a real MLflow server over
PostgreSQL. It runs once undisturbed. Then again, while workers, the command, its whole tree of processes, MLflow and S3
are killed by SIGKILL; what a user would start again is started again, each time with another number of workers.
At the end the weights, the kept checkpoints and the curves must be the same, point for point.
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
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from servers.fixtures import s3_environment
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import descendants
from servers.s3 import S3Server

WORKERS = (1, 2, 1, 4)  # one start of the command after the other
VICTIMS = ("worker", "command", "tree", "mlflow", "s3")
LONGEST_PAUSE = 12.0  # seconds between two kills; starting takes about as long
LONGEST_OUTAGE = 4.0  # seconds until a server is started again


def words(steps: int, workers: int, store: str, tracking: str) -> list[str]:
    """The command."""
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
        "storage_path": store,
        "tracking.uri": tracking,
        "output": "json",
    }
    return [f"{key}={value}" for key, value in settings.items()]


def name_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Command:
    """The pipeline as a user starts it, in a folder of its own."""

    folder: Path
    environment: dict[str, str]
    words: Callable[[int], list[str]]  # for so many workers
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    errors: list[str] = field(default_factory=list)  # last lines of starts that failed by themselves

    def start(self) -> None:
        workers = WORKERS[self.starts % len(WORKERS)]
        self.starts += 1
        command = [sys.executable, "-m", "pipeline.run", *self.words(workers)]
        errors = self.folder / f"stderr-{self.starts}"
        with (self.folder / "stdout").open("w") as out, errors.open("w") as err:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=err)

    def ended(self) -> bool:
        """Whether the training is done. A start that failed is made again, as its message asks."""
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
        """SIGKILL to a worker, to the command alone, or to its tree; whether there was one."""
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
        result: dict[str, Any] = json.loads((self.folder / "stdout").read_text().splitlines()[-1])
        return result


@contextmanager
def servers() -> Iterator[tuple[S3Server, MlflowServer]]:
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server())
        postgres = stack.enter_context(PostgresServer())
        place = f"s3://{s3.make_bucket()}/mlflow"
        keys = s3_environment(s3, s3.endpoint)
        yield s3, stack.enter_context(MlflowServer(postgres.create_database("chaos"), place, keys))


def history(tracking: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points of a run, but those that tell of the machine."""
    client = MlflowClient(tracking)
    names = sorted(name for name in client.get_run(run_id).data.metrics if "per_second" not in name)
    curves = {name: [(p.step, p.value) for p in client.get_metric_history(run_id, name)] for name in names}
    return {name: sorted(points) for name, points in curves.items()}


def finish(command: Command, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not command.ended():
        assert time.monotonic() < deadline, (command.folder / f"stderr-{command.starts}").read_text()
        time.sleep(0.2)
    return command.result()


def disturb(command: Command, s3: S3Server, mlflow: MlflowServer, kills: int, chance: random.Random) -> Counter[str]:
    """Kill so many processes, unless training ends before; what was killed how often."""
    killed: Counter[str] = Counter()
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    chance.shuffle(victims)
    while victims:
        wake = time.monotonic() + chance.uniform(0, LONGEST_PAUSE)
        while time.monotonic() < wake:
            if command.ended():
                return killed
            time.sleep(0.05)
        victim = victims[-1]
        if victim in ("mlflow", "s3"):
            server = mlflow if victim == "mlflow" else s3
            server.kill()
            time.sleep(chance.uniform(0, LONGEST_OUTAGE))
            server.restart()
        elif not command.kill(victim):
            continue  # there is none at this instant
        killed[victims.pop()] += 1
        print(f"{killed.total()}: {victim}, start {command.starts}", flush=True)
    return killed


def chaos(seed: int, kills: int, steps: int, folder: Path) -> Counter[str]:
    """Run both and compare; how often each kind of victim was killed."""
    chance = random.Random(seed)
    with servers() as (s3, mlflow):
        bucket = s3.make_bucket()
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        environment = {**plain, **s3_environment(s3, s3.endpoint), "PYTHONPATH": str(Path(__file__).parents[2])}
        found = []
        for name in ("undisturbed", "disturbed"):
            (folder / name).mkdir()
            make = lambda workers, name=name: words(steps, workers, f"s3://{bucket}/{name}", mlflow.uri)  # noqa: E731
            command = Command(folder / name, environment, make)
            command.start()
            began = time.monotonic()
            killed = disturb(command, s3, mlflow, kills, chance) if name == "disturbed" else Counter[str]()
            result = finish(command, 1200)
            store = f"{name}/runs/{Path(result['checkpoint']).parents[1].name}/checkpoints/"
            listed = s3.client().list_objects_v2(Bucket=bucket, Prefix=store)["Contents"]
            names = sorted(entry["Key"].removeprefix(store) for entry in listed)
            found.append((result["weights_sha256"], names, history(mlflow.uri, result["run_id"])))
            print(f"{name}: {time.monotonic() - began:.0f} s, {command.starts} starts, {command.errors}", flush=True)
    (weights, kept, curves), (weights_2, kept_2, curves_2) = found
    assert weights_2 == weights
    assert kept_2 == kept
    assert curves_2 == curves
    points = sum(map(len, curves.values()))
    assert points > steps / 30 * 5
    print(
        f"seed {seed}: {killed.total()} kills {dict(killed)}, {points} points and weights {weights[:12]} are the same"
    )
    return killed


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        chaos(int(given.get("seed", 0)), int(given.get("kills", 20)), int(given.get("steps", 4000)), Path(place))
