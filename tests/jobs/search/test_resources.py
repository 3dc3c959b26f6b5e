"""Resources of concurrent trials."""

import itertools
from typing import Any

import pytest

from jobs.cluster.ray_cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.resources import allocate_trials


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "train", "tune", "max_concurrent", "num_cpus", "threads"),
    [
        (2, 0, 2, {}, {}, 2, 1, 1),
        (2, 0, 2, {}, {"trials": 1}, 1, 2, 2),
        (2, 0, 2, {}, {"max_concurrent": 1}, 1, 2, 2),
        (2, 0, 2, {}, {"max_concurrent": 4}, 4, 0.5, 1),
        (16, 0, 16, {}, {"trials": 3}, 3, 5, 5),
        (64, 0, 16, {}, {"trials": 2}, 2, 16, 16),  # no trial is larger than a node
        (8, 0, 4, {"cpus_per_worker": 2}, {"trials": 100}, 4, 2, 2),
        (8, 0, 8, {"deterministic": True}, {"trials": 2}, 2, 4, 1),
        (2, 0, 2, {"num_workers": 2}, {}, 1, 1, 1),
        (9, 0, 9, {"num_workers": 2}, {}, 4, 1, 1),
        (16, 2, 16, {}, {"trials": 12}, 2, 8, 8),  # the CPUs are for as many trials as there are GPUs
        (16, 2, 16, {"gpus_per_worker": 0.5}, {"trials": 12}, 4, 4, 4),
        (16, 4, 16, {"num_workers": 2}, {"trials": 12}, 2, 4, 4),
        (16, 2, 16, {"device": "cpu"}, {"trials": 12}, 12, 1, 1),
    ],
)
def test_allocate_trials_divides_cluster(
    cpus: int,
    gpus: int,
    node: int,
    train: dict[str, Any],
    tune: dict[str, Any],
    max_concurrent: int,
    num_cpus: float,
    threads: int,
) -> None:
    """As many trials run at once as fit, with equal parts of the CPUs."""
    trials = allocate_trials(TrainConfig(**train), TuneConfig(**tune), Resources(cpus, gpus, node))
    assert (trials.max_concurrent, trials.worker.num_cpus, trials.worker.threads) == (max_concurrent, num_cpus, threads)


def test_allocate_trials_never_exceeds_cluster() -> None:
    """Concurrent trials never need more CPUs or GPUs than the cluster has."""
    settings = itertools.product(range(1, 34), [0, 1, 3, 8], [1, 2, 3], [0, 1, 5], [0, 0.5, 2])
    count = 0
    for cpus, gpus, workers, max_concurrent, cpus_per_worker in settings:
        train = TrainConfig(num_workers=workers, cpus_per_worker=cpus_per_worker)
        try:
            trials = allocate_trials(train, TuneConfig(max_concurrent=max_concurrent), Resources(cpus, gpus, cpus))
        except UserError:
            continue
        count += 1
        assert trials.max_concurrent * workers * trials.worker.num_cpus <= cpus + 1e-6
        assert trials.max_concurrent * workers * trials.worker.num_gpus <= gpus
        assert 1 <= trials.max_concurrent <= 12
    assert count > 500


@pytest.mark.parametrize(
    ("train", "tune", "key"),
    [
        ({"num_workers": 4}, {}, "train.num_workers"),
        ({"cpus_per_worker": 2}, {"max_concurrent": 2}, "tune.max_concurrent=2"),
        ({"device": "cuda"}, {}, "train.device"),
    ],
)
def test_allocate_trials_too_small_cluster(train: dict[str, Any], tune: dict[str, Any], key: str) -> None:
    """The message names the setting that does not fit the cluster."""
    with pytest.raises(UserError, match=key):
        allocate_trials(TrainConfig(**train), TuneConfig(**tune), Resources(2, 0, 2))
