"""CPUs, GPUs and threads of training workers."""

import pytest

from jobs.cluster.ray_cluster import Resources
from jobs.cluster.resources import allocate, max_worker_groups
from jobs.config import TrainConfig
from jobs.errors import UserError


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
        ({"num_workers": 4}, Resources(2, 0, 2), "train.num_workers"),
        ({"num_workers": 8, "min_workers": 3}, Resources(2, 0, 2), "train.num_workers"),
        ({"cpus_per_worker": 3}, Resources(4, 0, 2), "train.cpus_per_worker=3"),
        ({"num_workers": 2, "device": "cuda"}, Resources(8, 1, 8), "train.device"),
    ],
)
def test_allocate_divides_cpus_and_gpus(
    settings: dict[str, object], resources: Resources, expected: tuple[float, float, int] | str
) -> None:
    """Each worker gets an equal part of the cluster, or the settings that do not fit are named."""
    config = TrainConfig(**settings)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            allocate(config, resources)
    else:
        worker = allocate(config, resources)
        assert (worker.num_cpus, worker.num_gpus, worker.threads) == expected


def test_max_worker_groups_counts_fractions_exactly() -> None:
    """3 / (3 * 0.1) is a little less than 10 in floating point."""
    assert max_worker_groups(Resources(3, 0, 3), 3, 0.1, 0) == 10
    assert max_worker_groups(Resources(99, 3, 99), 3, 1, 0.1) == 10
    assert max_worker_groups(Resources(2, 9, 2), 3, 1, 1) == 0
