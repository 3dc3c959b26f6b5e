"""A training of seconds, actions that its events trigger, and checkpoints of an untrained model."""

import threading
from collections.abc import Callable
from pathlib import Path

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.data.shard_reader import DataAccess
from jobs.events import Event
from jobs.training.loop import train_model
from jobs.training.state import Training, TrainJob, Worker, take_snapshot
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig

SIZE = {"latent_dims": (2, 3), "width": 4, "hidden_dims": 16}
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


def small_job(dataset: Path, checkpoints: str | Path, **train: object) -> TrainJob:
    return TrainJob(
        model=VlaeConfig(**SIZE),
        objective=ObjectiveConfig(warmup_steps=5),
        progressive=ProgressiveConfig(),
        train=TrainConfig(**{**TRAIN, **train}),
        seed=0,
        data=DataAccess(str(dataset), dataset.with_name(f"{dataset.name}-cache"), 2**30),
        checkpoints=str(checkpoints),
        settings={"model.width": "4", "train.steps": "12"},
    )


def publish_checkpoint(manager: CheckpointManager, training: Training, step: int, elbo: float | None = None) -> None:
    """Save the state of a training as the checkpoint of a step."""
    training.step = step
    manager.save(take_snapshot(training, [], [], elbo))


def run(job: TrainJob) -> list[Event]:
    """Train to the end and return the events."""
    events: list[Event] = []
    train_model(job, Worker(), events.append)
    return events


def steps_of(events: list[Event], kind: type) -> list[int]:
    return [event.step for event in events if isinstance(event, kind)]


def same_result(job: TrainJob, other: TrainJob, folder: Path) -> bool:
    """Return whether two trainings have the same checkpoints, the last with the same weights."""
    managers = [CheckpointManager(each.checkpoints) for each in (job, other)]
    metas = [read_meta(manager.latest(folder / str(index))) for index, manager in enumerate(managers)]
    same_elbos = managers[0].validation_elbos() == managers[1].validation_elbos()
    return same_elbos and metas[0]["weights_sha256"] == metas[1]["weights_sha256"]


class EventScript:
    """Receives the events of a training and runs an action once an event of a kind and step arrives.

    Args:
        steps: (kind, step, action), taken in order.
    """

    def __init__(self, *steps: tuple[type, int, Callable[[], object]]) -> None:
        self.events: list[Event] = []
        self._steps, self._changed = list(steps), threading.Condition()

    def wait_for(self, kind: type, step: int) -> bool:
        """Wait until an event of this kind and of this step or later has arrived."""
        with self._changed:
            return self._changed.wait_for(lambda: max(steps_of(self.events, kind), default=-1) >= step, 60)

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        if self._steps and isinstance(event, self._steps[0][0]) and event.step >= self._steps[0][1]:
            self._steps.pop(0)[2]()
