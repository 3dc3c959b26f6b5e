"""Ray Train itself: several workers, lost workers, too few resources."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import descendants, local
from safetensors.torch import load_file

from jobs.cluster import Resources, cluster
from jobs.config import RayConfig, TrainConfig
from jobs.errors import UserError
from jobs.loop import TrainJob, Worker, train_model
from jobs.messages import Message, Point, Started
from jobs.train import place, run_training
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig


@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({}, Resources(2, 0, 2), (2, False)),
        ({"num_workers": 2}, Resources(2, 0, 2), (1, False)),
        ({"num_workers": 2}, Resources(8, 1, 8), (4, False)),
        ({"num_workers": 2}, Resources(8, 2, 8), (4, True)),
        ({"cpus_per_worker": 3}, Resources(8, 0, 8), (3, False)),
        ({"device": "cpu"}, Resources(4, 4, 4), (4, False)),
        ({}, Resources(8, 0, 4), (4, False)),
        ({"num_workers": 4}, Resources(2, 0, 2), "needs? 4, and the cluster has 2"),
        ({"num_workers": 2, "device": "cuda"}, Resources(8, 1, 8), "needs as many GPUs, and the cluster has 1"),
    ],
)
def test_placement(settings: dict[str, int], resources: Resources, expected: tuple[int, bool] | str) -> None:
    config = TrainConfig(**settings)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            place(config, resources)
    else:
        placement = place(config, resources)
        assert (placement.num_cpus, placement.use_gpu) == expected


@pytest.fixture(scope="module")
def resources() -> Iterator[Resources]:
    with cluster(RayConfig(num_cpus=2)) as found:
        yield found


def job(digit_dataset: Path, folder: Path, **settings: int) -> TrainJob:
    config = TrainConfig(
        **{"steps": 20, "batch_size": 16, "checkpoint_every": 10, "log_every": 5, "precision": "fp32", **settings}
    )
    model = VlaeConfig(latent_dims=(2, 3), width=4, hidden=16)
    return TrainJob(
        model, ObjectiveConfig(), ProgressiveConfig(), config, 0, local(digit_dataset), folder / "checkpoints"
    )


@pytest.mark.slow
def test_two_workers_train_the_same_model(digit_dataset: Path, tmp_path: Path, resources: Resources) -> None:
    alone = train_model(job(digit_dataset, tmp_path / "alone"), Worker(), lambda message: None)
    messages: list[Message] = []
    two = run_training(
        job(digit_dataset, tmp_path / "two", num_workers=2), resources, tmp_path / "ray", messages.extend
    )
    expected, found = (load_file(path / "model.safetensors") for path in (alone, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=5e-3, atol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert [m.step for m in messages if isinstance(m, Point) and "train/loss" in m.metrics] == [5, 10, 15, 20]


@pytest.mark.slow
def test_a_killed_worker_is_started_again_from_the_last_checkpoint(
    digit_dataset: Path, tmp_path: Path, resources: Resources
) -> None:
    killed: list[int] = []
    starts: list[int] = []

    def kill_once(messages: list[Message]) -> None:
        starts.extend(m.step for m in messages if isinstance(m, Started))
        if not killed and list((tmp_path / "checkpoints").glob("step-*")):
            below = [Path(f"/proc/{pid}/cmdline") for pid in descendants(os.getpid())]
            killed.extend(int(p.parent.name) for p in below if p.read_bytes().startswith(b"ray::RayTrainWorker"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    long = job(digit_dataset, tmp_path, steps=600, checkpoint_every=100)
    checkpoint = run_training(long, resources, tmp_path / "ray", kill_once)
    assert checkpoint.name == "step-00000600"
    assert len(killed) == 1
    assert len(starts) == 2
    assert starts[1] >= 100


@pytest.mark.slow
def test_what_a_worker_finds_wrong_is_said_as_it_said_it(tmp_path: Path, resources: Resources) -> None:
    with pytest.raises(UserError, match=r"^no dataset in .*: run stage=shard first$"):
        run_training(job(tmp_path / "nowhere", tmp_path), resources, tmp_path / "ray", lambda messages: None)
