"""Run the driver of a training in child processes that are killed at random instants.

python kill_uploading.py TRACKING_URI WORKSPACE RUN_ID NUM_KILLS SEED
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from jobs.checkpoints.format import FORMAT, HISTORY, META, OPTIMIZER, WEIGHTS, seal
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrackingConfig
from jobs.events import CheckpointSaved, MetricPoint, TrainingResumed
from jobs.files import file_sha256, write_json
from jobs.tracking.client import Tracker
from jobs.tracking.uploader import MetricUploader

STEPS_PER_COMMIT = 5


def publish_history(url: str, history: list[MetricPoint]) -> None:
    """Publish a checkpoint with a learning curve and empty weights.

    Args:
        url: Address of the checkpoints.
        history: Learning curve; its last step is that of the checkpoint.
    """
    step = history[-1].step
    with CheckpointManager(url).new(step) as folder:
        points = [json.loads(point.json) for point in history]
        (folder / HISTORY).write_text(
            json.dumps({"points": points, "pending": [], "warnings": {"processor": "another one"}})
        )
        for name in (WEIGHTS, OPTIMIZER):
            (folder / name).touch()
        files = {name: file_sha256(folder / name) for name in (HISTORY, WEIGHTS, OPTIMIZER)}
        write_json(folder / META, seal({"format": FORMAT, "step": step, "files": files}))


def train(uri: str, workspace: Path, run_id: str, child: int, ready: int) -> None:
    """Train without end; each child computes the values of a step a little differently."""
    checkpoints = str(workspace / "checkpoints")
    history = CheckpointManager(checkpoints).latest_history().points
    uploader = MetricUploader(Tracker(TrackingConfig(uri=uri), workspace), run_id)
    uploader.put(TrainingResumed(len(history), list(history)))
    os.write(ready, b".")
    while True:
        step = len(history) + 1
        metrics = {"train/loss": step + child / 7, "train/kl": 1 / step}
        history.append(MetricPoint(step, time.time_ns() // 1_000_000, metrics))
        uploader.put(history[-1])
        if step % STEPS_PER_COMMIT == 0:
            publish_history(checkpoints, history)
            uploader.put(CheckpointSaved(step))
        time.sleep(0.002)


def main(uri: str, workspace: Path, run_id: str, num_kills: int, seed: int) -> None:
    """Start and kill the children one after the other."""
    rng = random.Random(seed)
    reader, writer = os.pipe()
    for child in range(num_kills):
        pid = os.fork()
        if pid == 0:
            train(uri, workspace, run_id, child, writer)
        os.read(reader, 1)
        time.sleep(rng.random() ** 2 * 0.8)  # mostly early, because a start is more fragile
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
