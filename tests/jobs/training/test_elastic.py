"""Lost nodes, on a real Ray cluster of several nodes on this machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import small_job
from ray.cluster_utils import Cluster

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import CheckpointManager
from jobs.cluster.ray_cluster import cluster
from jobs.config import RayConfig, TrainConfig
from jobs.events import CheckpointSaved, Event, TrainingResumed
from jobs.train import run_training
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker

STEPS = 800


def job(dataset: Path, folder: Path, **settings: object) -> TrainJob:
    train = TrainConfig(
        steps=STEPS,
        batch_size=16,
        deterministic=True,
        checkpoint_every=100,
        log_every=50,
        cpus_per_worker=1,
        **settings,
    )
    return replace(small_job(dataset, folder), train=train)


def weights(folder: Path) -> str:
    path = CheckpointManager(str(folder)).latest(folder)
    assert path is not None
    return str(read_meta(path)["weights_sha256"])


@pytest.mark.slow
def test_training_continues_after_node_loss(digit_dataset: Path, tmp_path: Path) -> None:
    """Of two workers one is lost with its node; the weights are bit-identical to those of one worker."""
    health_checks = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": health_checks})
    events: list[Event] = []

    def remove_node(new: list[Event]) -> None:
        events.extend(new)
        if any(isinstance(event, CheckpointSaved) for event in new) and second in nodes.worker_nodes:
            nodes.remove_node(second, allow_graceful=False)

    try:
        second = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        with cluster(RayConfig(address=nodes.address)) as resources:
            assert resources.num_cpus == 2
            elastic = job(digit_dataset, tmp_path / "elastic", num_workers=2, min_workers=1)
            assert run_training(elastic, resources, tmp_path / "ray", remove_node) == STEPS
    finally:
        nodes.shutdown()
    assert len([event for event in events if isinstance(event, TrainingResumed)]) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_model(job(digit_dataset, tmp_path / "single"), Worker(), lambda event: None)
    torch.set_num_threads(threads)
    assert weights(tmp_path / "elastic") == weights(tmp_path / "single")
