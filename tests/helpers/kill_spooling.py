"""Run what stands for a training's driver in child processes that are killed at random instants.

python kill_spooling.py TRACKING_URI WORKSPACE RUN_ID NUM_KILLS SEED
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from jobs.config import TrackingConfig
from jobs.events import CheckpointSaved, MetricPoint, TrainingResumed
from jobs.files import write_json
from jobs.tracking.client import Tracker
from jobs.tracking.uploader import MetricUploader

STEPS_PER_COMMIT = 5


def read_history(workspace: Path) -> list[MetricPoint]:
    """The curve in the newest checkpoint."""
    path = workspace / "history.json"
    return [MetricPoint(**values) for values in json.loads(path.read_text())] if path.exists() else []


def train(uri: str, workspace: Path, run_id: str, number: int, begun: int) -> None:
    """Steps without end, computed a little differently by each process."""
    history = read_history(workspace)
    sender = MetricUploader(Tracker(TrackingConfig(uri=uri), workspace), run_id, workspace / "spool")
    sender.take(TrainingResumed(len(history), list(history)))
    os.write(begun, b".")
    while True:
        step = len(history) + 1
        metrics = {"train/loss": step + number / 7, "train/kl": 1 / step}
        history.append(MetricPoint(step, time.time_ns() // 1_000_000, metrics))
        sender.take(history[-1])
        if step % STEPS_PER_COMMIT == 0:
            write_json(workspace / "history.json", [vars(point) for point in history])
            sender.take(CheckpointSaved(step))
        time.sleep(0.002)


def main(uri: str, workspace: Path, run_id: str, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    reader, writer = os.pipe()
    for number in range(num_kills):
        pid = os.fork()
        if pid == 0:
            train(uri, workspace, run_id, number, writer)
        os.read(reader, 1)
        time.sleep(rng.random() ** 2 * 0.8)  # often early
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
