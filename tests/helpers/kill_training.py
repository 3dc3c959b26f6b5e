"""Train in child processes that are killed at random instants, as often as asked for; then to the end.

python kill_training.py DATASET PLACE NUM_KILLS SEED
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
from jobs.checkpoints.manager import Checkpoints
from jobs.events import CheckpointSaved, Event, TrainingResumed
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker


def train(job: TrainJob, pipe: int) -> None:
    """Train, and tell through a pipe from which step, and which steps are committed."""

    def post(message: Event) -> None:
        if isinstance(message, TrainingResumed | CheckpointSaved):
            os.write(pipe, b"%d\n" % message.step)

    train_model(job, Worker(), post)


def kill_once(job: TrainJob, wait: float) -> tuple[bool, list[int]]:
    """Whether it was killed so long after its start, and what it told before."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        train(job, writer)
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 100)  # that it has started
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    while more := os.read(reader, 1000):
        told += more
    os.close(reader)
    return killed, [int(step) for step in told.split()]


def main(dataset: str, folder: str, num_kills: int, seed: int) -> None:
    """Raises AssertionError where what was committed is gone, or is not whole."""
    torch.set_num_threads(1)
    rng, job = random.Random(seed), small_job(Path(dataset), folder, checkpoint_every=1)
    place, kills, finished, parts = Checkpoints(folder), 0, 0, 0
    while kills < num_kills:
        killed, told = kill_once(job, rng.random() * 0.5)
        kills += killed
        parts += len(place.folders()) > len(place.steps()) or any(Path(folder).glob(".partial-*"))
        newest = place.newest(Path("/nowhere"))
        reached = place.step_of(newest) if newest else 0
        assert told[-1] <= reached <= told[-1] + 1, (told, reached)
        if reached == job.train.steps and kills < num_kills:
            finished += 1
            shutil.rmtree(folder)
    train_model(job, Worker(), lambda message: None)
    print(f"seed {seed}: {kills} kills, {parts} left parts behind, finished {finished} times")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
