"""Ray Train itself: several workers, lost workers, too few resources."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.datasets import local
from safetensors.torch import load_file
from servers.processes import descendants

from jobs.cluster.ray_cluster import Resources, cluster
from jobs.cluster.resources import allocate
from jobs.config import RayConfig, TrainConfig
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingStopped
from jobs.train import run_training
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig


@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({}, Resources(2, 0, 2), (2, 0, 2)),
        ({"num_workers": 2}, Resources(2, 0, 2), (1, 0, 1)),
        ({"num_workers": 2}, Resources(8, 1, 8), (4, 0, 4)),
        ({"num_workers": 2}, Resources(8, 2, 8), (4, 1, 4)),
        ({"num_workers": 2, "gpus_per_worker": 0.5}, Resources(8, 1, 8), (4, 0.5, 4)),
        ({"cpus_per_worker": 3}, Resources(8, 0, 8), (3, 0, 3)),
        ({"num_workers": 4, "cpus_per_worker": 0.5}, Resources(2, 0, 2), (0.5, 0, 1)),
        ({"cpus_per_worker": 3, "deterministic": True}, Resources(8, 0, 8), (3, 0, 1)),
        ({"threads_per_worker": 2, "deterministic": True}, Resources(8, 0, 8), (8, 0, 2)),
        ({"device": "cpu"}, Resources(4, 4, 4), (4, 0, 4)),
        ({}, Resources(8, 0, 4), (4, 0, 4)),
        ({"num_workers": 4, "min_workers": 1}, Resources(2, 0, 2), (1, 0, 1)),
        ({"num_workers": 4}, Resources(2, 0, 2), "4 workers with 1 CPU each need 4, and the cluster has 2"),
        ({"num_workers": 8, "min_workers": 3}, Resources(2, 0, 2), "3 workers with 1 CPU each need 3"),
        ({"cpus_per_worker": 3}, Resources(4, 0, 2), "train.cpus_per_worker=3 is more than the largest node"),
        ({"num_workers": 2, "device": "cuda"}, Resources(8, 1, 8), "need 2, and the cluster has 1: set train.device"),
    ],
)
def test_placement(settings: dict[str, object], resources: Resources, expected: tuple[float, float, int] | str) -> None:
    config = TrainConfig(**settings)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            allocate(config, resources)
    else:
        placement = allocate(config, resources)
        assert (placement.num_cpus, placement.num_gpus, placement.threads) == expected


@pytest.fixture
def resources() -> Iterator[Resources]:
    with cluster(RayConfig(num_cpus=2)) as found:
        yield found


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
    below = [Path(f"/proc/{pid}/cmdline") for pid in descendants(os.getpid())]
    return [int(path.parent.name) for path in below if path.read_bytes().startswith(b"ray::RayTrainWorker")]


@pytest.mark.slow
def test_two_workers_train_the_same_model(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    alone, two = tmp_path / "alone", tmp_path / "two"
    train_model(job(digit_dataset, alone), Worker(), lambda message: None)
    messages: list[Event] = []
    assert run_training(job(digit_dataset, two, num_workers=2), resources, tmp_path / "ray", messages.extend) == 20
    expected, found = (load_file(folder / "checkpoints/step-00000020/model.safetensors") for folder in (alone, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=5e-3, atol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert [m.step for m in messages if isinstance(m, MetricPoint) and "train/loss" in m.metrics] == [5, 10, 15, 20]


@pytest.mark.slow
def test_a_killed_worker_is_started_again_from_the_last_checkpoint(
    digit_dataset: Path, tmp_path: Path, resources: Resources
) -> None:
    messages: list[Event] = []
    killed: list[int] = []

    def kill_once(new: list[Event]) -> None:
        messages.extend(new)
        if not killed and any(isinstance(m, CheckpointSaved) for m in messages):
            killed.extend(train_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    long = job(digit_dataset, tmp_path, steps=600, checkpoint_every=100)
    assert run_training(long, resources, tmp_path / "ray", kill_once) == 600
    assert len(killed) == 1
    starts = [m.step for m in messages if isinstance(m, TrainingResumed)]
    assert len(starts) == 2
    assert starts[1] >= 100


@pytest.mark.slow
def test_a_node_that_is_taken_away_leaves_a_checkpoint(
    digit_dataset: Path, tmp_path: Path, resources: Resources
) -> None:
    """SIGTERM to a worker other than the one that writes: no step is lost, and no point of the curve."""
    messages: list[Event] = []
    told: list[float] = []

    def terminate_once(new: list[Event]) -> None:
        messages.extend(new)
        if not told and any(isinstance(m, MetricPoint) and m.step >= 30 for m in messages):
            told.append(time.monotonic())
            os.kill(max(train_workers()), signal.SIGTERM)
        if told and len(told) == 1 and any(isinstance(m, TrainingStopped) for m in messages):
            told.append(time.monotonic())

    long = job(digit_dataset, tmp_path, steps=400, checkpoint_every=400, num_workers=2)
    assert run_training(long, resources, tmp_path / "ray", terminate_once) == 400
    (stopped,) = [m.step for m in messages if isinstance(m, TrainingStopped)]
    assert [m.step for m in messages if isinstance(m, TrainingResumed)] == [0, stopped]
    assert [m.step for m in messages if isinstance(m, MetricPoint) and "train/loss" in m.metrics] == list(
        range(5, 401, 5)
    )
    assert told[1] - told[0] < 10


@pytest.mark.slow
def test_workers_that_never_get_anywhere_are_given_up(
    digit_dataset: Path, tmp_path: Path, resources: Resources
) -> None:
    def kill(new: list[Event]) -> None:
        if any(isinstance(m, TrainingResumed) for m in new):
            for pid in train_workers():
                os.kill(pid, signal.SIGKILL)

    hopeless = job(digit_dataset, tmp_path, steps=5000, checkpoint_every=5000, max_failures=1)
    message = r"^training failed 2 times without a checkpoint between .* a worker ended without a word"
    with pytest.raises(UserError, match=message):
        run_training(hopeless, resources, tmp_path / "ray", kill)


@pytest.mark.slow
def test_what_a_worker_finds_wrong_is_said_as_it_said_it(tmp_path: Path, resources: Resources) -> None:
    with pytest.raises(UserError, match=r"^no dataset in .*: run stage=shard first$"):
        run_training(job(tmp_path / "nowhere", tmp_path), resources, tmp_path / "ray", lambda messages: None)
