"""A training that takes a moment, what can befall it on its way, and checkpoints that nobody had to train for."""

import threading
from collections.abc import Callable
from pathlib import Path

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import Checkpoints
from jobs.config import TrainConfig
from jobs.data.shard_reader import DataAccess
from jobs.events import Event
from jobs.training.loop import train_model
from jobs.training.snapshot import take_snapshot
from jobs.training.state import Training, TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig

TRAIN = {
    "steps": 12,
    "batch_size": 16,
    "num_microbatches": 4,
    "learning_rate": 3e-3,
    "lr_warmup_steps": 2,
    "checkpoint_every": 3,
    "log_every": 2,
    "precision": "fp32",
}


def small_job(dataset: Path, place: str | Path, **train: object) -> TrainJob:
    return TrainJob(
        model=VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=16),
        objective=ObjectiveConfig(warmup_steps=5),
        progressive=ProgressiveConfig(),
        train=TrainConfig(**{**TRAIN, **train}),
        seed=0,
        data=DataAccess(str(dataset), dataset.with_name(f"{dataset.name}-cache"), 2**30),
        checkpoints=str(place),
        settings={"model.width": "4", "train.steps": "12"},
    )


def put(place: Checkpoints, training: Training, step: int, score: float | None = None) -> None:
    """Publish the state of a training as the checkpoint of a step."""
    training.step = step
    with place.scratch() as scratch:
        folder = scratch / f"step-{step:08d}"
        folder.mkdir()
        take_snapshot(training, [], [], score).write(folder)
        place.publish(folder)


def run(job: TrainJob) -> list[Event]:
    messages: list[Event] = []
    train_model(job, Worker(), messages.append)
    return messages


def steps_of(messages: list[Event], kind: type) -> list[int]:
    return [message.step for message in messages if isinstance(message, kind)]


def ended_alike(job: TrainJob, other: TrainJob, folder: Path) -> bool:
    """Whether two trainings have the same checkpoints, the last with the same weights."""
    places = [Checkpoints(one.checkpoints) for one in (job, other)]
    last = [read_meta(place.newest(folder / str(number))) for number, place in enumerate(places)]
    return places[0].scores() == places[1].scores() and last[0]["weights_sha256"] == last[1]["weights_sha256"]


class EventScript:
    """Takes the messages of a training, and does something once when one of a kind and a step arrives."""

    def __init__(self, *turns: tuple[type, int, Callable[[], object]]) -> None:
        self.messages: list[Event] = []
        self._turns, self._changed = list(turns), threading.Condition()

    def told(self, kind: type, step: int) -> bool:
        """Wait until a message of this kind and of this step or later has come."""
        with self._changed:
            return self._changed.wait_for(lambda: max(steps_of(self.messages, kind), default=-1) >= step, 60)

    def __call__(self, message: Event) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
        if self._turns and isinstance(message, self._turns[0][0]) and message.step >= self._turns[0][1]:
            self._turns.pop(0)[2]()
