"""The train job on Ray Train: several workers, lost workers, errors of workers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.datasets import local
from safetensors.torch import load_file
from servers.processes import descendants, listening_sockets

from jobs.cluster.ray_cluster import Resources, cluster
from jobs.config import RayConfig, TrainConfig
from jobs.errors import TrainingError, UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingStopped
from jobs.train import run_training
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig


@pytest.fixture
def resources() -> Iterator[Resources]:
    with cluster(RayConfig(num_cpus=2)) as cluster_resources:
        yield cluster_resources


def job(digit_dataset: Path, folder: Path, **settings: int) -> TrainJob:
    config = TrainConfig(
        **{"steps": 20, "batch_size": 16, "checkpoint_every": 10, "log_every": 5, "precision": "fp32", **settings}
    )
    model = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=16)
    return TrainJob(
        model, ObjectiveConfig(), ProgressiveConfig(), config, 0, local(digit_dataset), str(folder / "checkpoints")
    )


def train_workers() -> list[int]:
    """Processes of the training workers."""
    commands = [Path(f"/proc/{pid}/cmdline") for pid in descendants(os.getpid())]
    return [int(path.parent.name) for path in commands if path.read_bytes().startswith(b"ray::RayTrainWorker")]


def loss_steps(events: list[Event]) -> list[int]:
    """Steps of the learning curve."""
    return [event.step for event in events if isinstance(event, MetricPoint) and "train/loss" in event.metrics]


@pytest.mark.slow
def test_run_training_two_workers_same_weights(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    """Two workers train the same model as one, up to rounding."""
    single, two = tmp_path / "single", tmp_path / "two"
    train_model(job(digit_dataset, single), Worker(), lambda event: None)
    events: list[Event] = []
    assert run_training(job(digit_dataset, two, num_workers=2), resources, tmp_path / "ray", events.extend) == 20
    expected, weights = (load_file(folder / "checkpoints/step-00000020/model.safetensors") for folder in (single, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(
            weights[name], tensor, rtol=5e-3, atol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert loss_steps(events) == [5, 10, 15, 20]


@pytest.mark.slow
def test_run_training_local_listens_on_loopback(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    """Neither Ray nor torch can be reached from another machine, and a path needs no quoting."""
    sockets: dict[int, str] = {}

    def look(new: list[Event]) -> None:
        if any(isinstance(event, TrainingResumed) for event in new):
            sockets.update(listening_sockets(descendants(os.getpid())))

    two = job(digit_dataset, tmp_path, num_workers=2)
    assert run_training(two, resources, tmp_path / "ray #1?", look) == 20
    assert len(sockets) >= 8  # GCS, raylet, driver, controller, event queue, two workers, and their gloo
    assert {port: address for port, address in sockets.items() if address != "127.0.0.1"} == {}


@pytest.mark.slow
def test_run_training_killed_worker_resumes(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    """A killed worker is started again from the last checkpoint."""
    events: list[Event] = []
    killed: list[int] = []

    def kill_once(new: list[Event]) -> None:
        events.extend(new)
        if not killed and any(isinstance(event, CheckpointSaved) for event in events):
            killed.extend(train_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    long = job(digit_dataset, tmp_path, steps=600, checkpoint_every=100)
    assert run_training(long, resources, tmp_path / "ray", kill_once) == 600
    assert len(killed) == 1
    starts = [event.step for event in events if isinstance(event, TrainingResumed)]
    assert len(starts) == 2
    assert starts[1] >= 100


@pytest.mark.slow
def test_run_training_sigterm_saves_checkpoint(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    """SIGTERM to a worker other than the one that writes: no step is lost, and no point of the curve."""
    events: list[Event] = []
    terminated: list[int] = []

    def terminate_once(new: list[Event]) -> None:
        events.extend(new)
        if not terminated and any(isinstance(event, MetricPoint) and event.step >= 30 for event in events):
            terminated.append(max(train_workers()))
            os.kill(terminated[0], signal.SIGTERM)

    long = job(digit_dataset, tmp_path, steps=400, checkpoint_every=400, num_workers=2)
    assert run_training(long, resources, tmp_path / "ray", terminate_once) == 400
    (stopped,) = [event.step for event in events if isinstance(event, TrainingStopped)]
    assert [event.step for event in events if isinstance(event, TrainingResumed)] == [0, stopped]
    assert loss_steps(events) == list(range(5, 401, 5))
    assert stopped < 400


@pytest.mark.slow
def test_run_training_repeated_failures_give_up(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    """Workers that fail again without a checkpoint in between end the training."""

    def kill(new: list[Event]) -> None:
        if any(isinstance(event, TrainingResumed) for event in new):
            for pid in train_workers():
                os.kill(pid, signal.SIGKILL)

    hopeless = job(digit_dataset, tmp_path, steps=5000, checkpoint_every=5000, max_failures=1)
    with pytest.raises(TrainingError, match=r"train\.max_failures=1") as error:
        run_training(hopeless, resources, tmp_path / "ray", kill)
    assert error.value.retry


@pytest.mark.slow
def test_run_training_worker_error_is_raised(tmp_path: Path, resources: Resources) -> None:
    """The message of a worker's error reaches the user unchanged."""
    with pytest.raises(UserError, match=r"stage=shard"):
        run_training(job(tmp_path / "nowhere", tmp_path), resources, tmp_path / "ray", lambda events: None)
