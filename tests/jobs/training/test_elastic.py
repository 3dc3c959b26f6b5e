"""Nodes that go, on a real cluster of several nodes on this machine."""

from pathlib import Path

import pytest
import torch
from helpers.datasets import local
from ray.cluster_utils import Cluster

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import Checkpoints
from jobs.cluster.ray_cluster import cluster
from jobs.config import RayConfig, TrainConfig
from jobs.events import CheckpointSaved, Event, TrainingResumed
from jobs.train import run_training
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig


def job(dataset: Path, folder: Path, **settings: object) -> TrainJob:
    train = TrainConfig(
        batch_size=16, deterministic=True, checkpoint_every=100, log_every=50, cpus_per_worker=1, **settings
    )
    model = VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=16)
    return TrainJob(model, ObjectiveConfig(), ProgressiveConfig(), train, 0, local(dataset), str(folder))


def weights(folder: Path) -> str:
    path = Checkpoints(str(folder)).newest(folder)
    assert path is not None
    return str(read_meta(path)["weights_sha256"])


@pytest.mark.slow
def test_a_node_is_lost_and_the_others_go_on(digit_dataset: Path, tmp_path: Path) -> None:
    """Two workers, one is lost with its node, one goes on: to the bit as one alone."""
    autocast_bf16 = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": autocast_bf16})
    messages: list[Event] = []

    def take_away(new: list[Event]) -> None:
        messages.extend(new)
        if any(isinstance(m, CheckpointSaved) for m in new) and second in machines.worker_nodes:
            machines.remove_node(second, allow_graceful=False)

    try:
        second = machines.add_node(num_cpus=1)
        machines.wait_for_nodes()
        with cluster(RayConfig(address=machines.address)) as resources:
            assert resources.num_cpus == 2
            long = job(digit_dataset, tmp_path / "elastic", steps=800, num_workers=2, min_workers=1)
            assert run_training(long, resources, tmp_path / "ray", take_away) == 800
    finally:
        machines.shutdown()
    assert len([m for m in messages if isinstance(m, TrainingResumed)]) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_model(job(digit_dataset, tmp_path / "alone", steps=800), Worker(), lambda message: None)
    torch.set_num_threads(threads)
    assert weights(tmp_path / "elastic") == weights(tmp_path / "alone")
