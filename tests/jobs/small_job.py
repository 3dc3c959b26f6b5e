"""A training that takes a moment, and checkpoints of it that nobody had to train for."""

from pathlib import Path

from jobs.checkpoints import Checkpoints
from jobs.config import TrainConfig
from jobs.data.shard_files import DataAccess
from jobs.loop import train_model
from jobs.messages import Message
from jobs.snapshot import take_snapshot
from jobs.training import Training, TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig

TRAIN = {
    "steps": 12,
    "batch_size": 16,
    "num_slices": 4,
    "learning_rate": 3e-3,
    "lr_warmup_steps": 2,
    "checkpoint_every": 3,
    "log_every": 2,
    "precision": "fp32",
}


def small_job(dataset: Path, place: str | Path, **train: object) -> TrainJob:
    return TrainJob(
        model=VlaeConfig(latent_dims=(2, 3), width=4, hidden=16),
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


def run(job: TrainJob) -> list[Message]:
    messages: list[Message] = []
    train_model(job, Worker(), messages.append)
    return messages
