"""Exact mode: the tree's sums by themselves, and weights to the bit for any number of workers."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import local
from helpers.local_process_group import curve, train

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import Checkpoints
from jobs.config import TrainConfig
from jobs.data.sampling import worker_slices
from jobs.events import Event
from jobs.training.loop import train_model
from jobs.training.ordered_sum import add_up, subtrees
from jobs.training.state import TrainJob, Worker
from vlae.config import HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig

SIZE = {"latent_dims": (2, 3), "width": 4, "hidden_dims": 16}


def pairwise(values: np.ndarray) -> np.float32:
    """The tree's sum, by numpy and by hand."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return np.float32(pairwise(values[:middle]) + pairwise(values[middle:]))


@pytest.mark.parametrize("num_microbatches", [1, 2, 5, 8, 13])
def test_the_sum_is_the_same_for_any_number_of_workers(num_microbatches: int) -> None:
    values = np.random.default_rng(num_microbatches).normal(0, 1e4, num_microbatches).astype(np.float32)
    root = (0, num_microbatches)
    for world_size in range(1, num_microbatches + 1):
        known = {}
        for rank in range(world_size):
            slices = worker_slices(num_microbatches, rank, world_size)
            for node in subtrees(root, slices):
                known[node] = add_up(node, lambda n: [torch.tensor(values[n[0]])] if n[1] - n[0] == 1 else None)
        covered = sorted(number for first, last in known for number in range(first, last))
        assert covered == list(range(num_microbatches))
        (total,) = add_up(root, known.get)
        assert total.numpy() == pairwise(values)
    if num_microbatches == 13:  # the order does matter
        assert pairwise(values) != np.cumsum(values)[-1]


def test_at_most_a_logarithm_of_sums_is_held() -> None:
    held, most = 0, 0

    class Counted(list):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def leaf(node: tuple[int, int]) -> list[torch.Tensor] | None:
        nonlocal held, most
        if node[1] - node[0] > 1:
            return None
        held += 1
        most = max(most, held)
        return Counted([torch.ones(())])

    assert add_up((0, 64), leaf)[0] == 64
    assert most <= 7


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    train = TrainConfig(
        steps=14,
        batch_size=16,
        num_microbatches=8,
        learning_rate=3e-3,
        lr_warmup_steps=2,
        checkpoint_every=4,
        log_every=3,
    )
    return TrainJob(
        model=VlaeConfig(**SIZE),
        objective=ObjectiveConfig(warmup_steps=5),
        progressive=ProgressiveConfig(),
        train=train.model_copy(update={"deterministic": True}),
        seed=0,
        data=local(digit_dataset),
        checkpoints=str(tmp_path / "one"),
    )


def hashes(job: TrainJob) -> dict[str, str]:
    path = Checkpoints(job.checkpoints).newest(Path("/nowhere"))
    assert path is not None
    files: dict[str, str] = read_meta(path)["files"]
    return {name: digest for name, digest in files.items() if name.endswith("safetensors")} | {"": path.name}


def at(job: TrainJob, folder: Path) -> TrainJob:
    return replace(job, checkpoints=str(folder))


@pytest.mark.slow
def test_two_workers(job: TrainJob, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole: list[Event] = []
    train_model(job, Worker(), whole.append)
    torch.set_num_threads(threads)
    other = at(job, tmp_path / "two")
    assert curve(train(other, 2)) == curve(whole)
    assert hashes(other) == hashes(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("several", "model", "more"),
    [
        ((2, 4, 8), VlaeConfig(**SIZE), {}),
        ((4,), HvaeConfig(**SIZE), {}),
        ((3,), LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE), {}),
        (
            (2,),
            VlaeConfig(likelihood="gaussian", likelihood_scale="optimal", prior_shape=4, **SIZE),
            {
                "objective": ObjectiveConfig(
                    beta=(2, 1), total_correlation=1, mmd=(10, 0), mmd_decay_steps=6, free_bits=0.1
                ),
                "progressive": ProgressiveConfig(stage_steps=6, fade_steps=3),
            },
        ),
    ],
    ids=["vlae", "hvae", "batch-norm", "all"],
)
def test_any_workers_any_stops(
    job: TrainJob, tmp_path: Path, several: tuple[int, ...], model: VlaeConfig, more: dict[str, object]
) -> None:
    """Statistics of batches, free bits, total correlation and MMD belong to the slice, whoever computes it."""
    job = replace(job, model=model, **more)
    whole = curve(train(job, 1))
    assert list(whole) == [3, 4, 6, 8, 9, 12, 14]
    for workers in several:
        other = at(job, tmp_path / str(workers))
        assert curve(train(other, workers)) == whole
        assert hashes(other) == hashes(job)
    stopped, messages = at(job, tmp_path / "stopped"), list[Event]()
    chance = random.Random(0)
    for step in (3, 6, 9):
        messages += train(stopped, chance.choice([1, 2, 4]), stop_at=step)
    messages += train(stopped, 3)
    assert hashes(stopped) == hashes(job)
    assert curve(messages) == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_plain_workers_train_the_same_model(job: TrainJob, tmp_path: Path, workers: int, accumulate: int) -> None:
    """Shares of different sizes and several passes: the gradient is that of the whole batch all the same."""
    settings = {"deterministic": False, "steps": 6, "precision": "fp32"}
    job = replace(job, train=job.train.model_copy(update=settings))
    alone = curve(train(job, 1))
    several = replace(job, train=job.train.model_copy(update={"gradient_accumulation_steps": accumulate}))
    found = curve(train(at(several, tmp_path / "several"), workers))
    assert list(found) == list(alone)
    for step, metrics in alone.items():
        assert found[step] == pytest.approx(metrics, rel=2e-3, abs=2e-3)
