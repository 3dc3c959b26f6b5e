"""How a cluster is shared out among trials: what fits runs beside another, and what cannot is said."""

import itertools
from typing import Any

import pytest

from jobs.cluster.ray_cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.resources import allocate_trials


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "train", "tune", "at_once", "each", "threads"),
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
def test_shares(
    cpus: int,
    gpus: int,
    node: int,
    train: dict[str, Any],
    tune: dict[str, Any],
    at_once: int,
    each: float,
    threads: int,
) -> None:
    room = allocate_trials(TrainConfig(**train), TuneConfig(**tune), Resources(cpus, gpus, node))
    assert (room.max_concurrent, room.placement.num_cpus, room.placement.threads) == (at_once, each, threads)


def test_what_runs_at_once_is_never_more_than_there_is() -> None:
    settings = itertools.product(range(1, 34), [0, 1, 3, 8], [1, 2, 3], [0, 1, 5], [0, 0.5, 2])
    seen = 0
    for cpus, gpus, workers, most, each in settings:
        train = TrainConfig(num_workers=workers, cpus_per_worker=each)
        try:
            room = allocate_trials(train, TuneConfig(max_concurrent=most), Resources(cpus, gpus, cpus))
        except UserError:
            continue
        seen += 1
        assert room.max_concurrent * workers * room.placement.num_cpus <= cpus + 1e-6
        assert room.max_concurrent * workers * room.placement.num_gpus <= gpus
        assert 1 <= room.max_concurrent <= 12
    assert seen > 500


@pytest.mark.parametrize(
    ("train", "tune", "said"),
    [
        ({"num_workers": 4}, {}, "use fewer train.num_workers"),
        ({"cpus_per_worker": 2}, {"max_concurrent": 2}, "tune.max_concurrent=2: there is room for 1 trials"),
        ({"device": "cuda"}, {}, "set train.device=cpu"),
    ],
)
def test_what_does_not_fit(train: dict[str, Any], tune: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        allocate_trials(TrainConfig(**train), TuneConfig(**tune), Resources(2, 0, 2))
