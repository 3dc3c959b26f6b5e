"""Train in child processes that are killed at random instants, then to the end.

python -m helpers.kill_training DATASET CHECKPOINTS NUM_KILLS SEED
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from helpers.small_job import small_job
from jobs.checkpoints.manager import CheckpointManager
from jobs.events import CheckpointSaved, Event, TrainingResumed
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker


def train(job: TrainJob, pipe: int) -> None:
    """Train, and write the steps of the resume and of each saved checkpoint to a pipe."""

    def emit(event: Event) -> None:
        if isinstance(event, TrainingResumed | CheckpointSaved):
            os.write(pipe, b"%d\n" % event.step)

    train_model(job, Worker(), emit)


def kill_once(job: TrainJob, wait: float) -> tuple[bool, list[int]]:
    """Return whether a training was killed `wait` seconds after its start, and the steps that it wrote before."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        train(job, writer)
        os._exit(0)
    os.close(writer)
    output = os.read(reader, 100)  # waits for the start
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    while more := os.read(reader, 1000):
        output += more
    os.close(reader)
    return killed, [int(step) for step in output.split()]


def main(dataset: str, folder: str, num_kills: int, seed: int) -> None:
    """Raise AssertionError where a saved checkpoint is missing or incomplete."""
    torch.set_num_threads(1)
    rng, job = random.Random(seed), small_job(Path(dataset), folder, checkpoint_every=1)
    manager, kills, finished, partial = CheckpointManager(folder), 0, 0, 0
    while kills < num_kills:
        killed, steps = kill_once(job, rng.random() * 0.5)
        kills += killed
        partial += len(manager.folders()) > len(manager.steps()) or any(Path(folder).glob(".partial-*"))
        latest = manager.latest(Path("/nowhere"))
        reached = manager.step_of(latest) if latest else 0
        assert steps[-1] <= reached <= steps[-1] + 1, (steps, reached)
        if reached == job.train.steps and kills < num_kills:
            finished += 1
            shutil.rmtree(folder)
    train_model(job, Worker(), lambda event: None)
    print(f"seed {seed}: {kills} kills, {partial} left partial checkpoints, finished {finished} times")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
