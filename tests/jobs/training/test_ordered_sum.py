"""Deterministic training: the tree's sums by themselves, and bit-identical weights for any number of workers."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.local_process_group import curve, train
from helpers.small_job import SIZE, run, small_job

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import CheckpointManager
from jobs.data.sampling import worker_microbatches
from jobs.events import Event
from jobs.training.ordered_sum import subtrees, tree_sum
from jobs.training.state import TrainJob
from vlae.config import HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig


def pairwise(values: np.ndarray) -> np.float32:
    """Return the tree's sum by numpy."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return np.float32(pairwise(values[:middle]) + pairwise(values[middle:]))


@pytest.mark.parametrize("num_microbatches", [1, 2, 5, 8, 13])
def test_tree_sum_is_independent_of_workers(num_microbatches: int) -> None:
    values = np.random.default_rng(num_microbatches).normal(0, 1e4, num_microbatches).astype(np.float32)
    root = (0, num_microbatches)
    for world_size in range(1, num_microbatches + 1):
        sums = {}
        for rank in range(world_size):
            microbatches = worker_microbatches(num_microbatches, rank, world_size)
            for node in subtrees(root, microbatches):
                sums[node] = tree_sum(node, lambda n: [torch.tensor(values[n[0]])] if n[1] - n[0] == 1 else None)
        covered = sorted(index for first, last in sums for index in range(first, last))
        assert covered == list(range(num_microbatches))
        (total,) = tree_sum(root, sums.get)
        assert total.numpy() == pairwise(values)
    if num_microbatches == 13:  # the order does matter
        assert pairwise(values) != np.cumsum(values)[-1]


def test_tree_sum_holds_logarithmically_many_sums() -> None:
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

    assert tree_sum((0, 64), leaf)[0] == 64
    assert most <= 7


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    settings = {"steps": 14, "num_microbatches": 8, "checkpoint_every": 4, "log_every": 3, "precision": "auto"}
    return small_job(digit_dataset, tmp_path / "one", deterministic=True, **settings)


def hashes(job: TrainJob) -> dict[str, str]:
    path = CheckpointManager(job.checkpoints).latest(Path("/nowhere"))
    assert path is not None
    files: dict[str, str] = read_meta(path)["files"]
    return {name: digest for name, digest in files.items() if name.endswith("safetensors")} | {"": path.name}


@pytest.mark.slow
def test_two_workers_equal_one(job: TrainJob, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = run(job)
    torch.set_num_threads(threads)
    other = replace(job, checkpoints=str(tmp_path / "two"))
    assert curve(train(other, 2)) == curve(expected)
    assert hashes(other) == hashes(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_sizes", "model", "settings"),
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
def test_any_workers_and_stops_equal_one(
    job: TrainJob, tmp_path: Path, world_sizes: tuple[int, ...], model: VlaeConfig, settings: dict[str, object]
) -> None:
    """Batch statistics, free bits, total correlation and MMD belong to the microbatch on any worker."""
    job = replace(job, model=model, **settings)
    expected = curve(train(job, 1))
    assert list(expected) == [3, 4, 6, 8, 9, 12, 14]
    for world_size in world_sizes:
        other = replace(job, checkpoints=str(tmp_path / str(world_size)))
        assert curve(train(other, world_size)) == expected
        assert hashes(other) == hashes(job)
    stopped, events = replace(job, checkpoints=str(tmp_path / "stopped")), list[Event]()
    rng = random.Random(0)
    for step in (3, 6, 9):
        events += train(stopped, rng.choice([1, 2, 4]), stop_at=step)
    events += train(stopped, 3)
    assert hashes(stopped) == hashes(job)
    assert curve(events) == expected


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_plain_workers_approximate_one(job: TrainJob, tmp_path: Path, world_size: int, accumulation_steps: int) -> None:
    """With unequal fractions of the batch and several passes, the gradient is that of the whole batch."""
    settings = {"deterministic": False, "steps": 6, "precision": "fp32"}
    job = replace(job, train=job.train.model_copy(update=settings))
    expected = curve(train(job, 1))
    config = job.train.model_copy(update={"gradient_accumulation_steps": accumulation_steps})
    other = curve(train(replace(job, train=config, checkpoints=str(tmp_path / "several")), world_size))
    assert list(other) == list(expected)
    for step, metrics in expected.items():
        assert other[step] == pytest.approx(metrics, rel=2e-3, abs=2e-3)
