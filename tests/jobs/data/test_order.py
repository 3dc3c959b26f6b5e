"""The order of the samples: a permutation for every size and key, shared out without a gap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.order import batch_indices, permute, worker_slices


@settings(deadline=None)
@given(num_samples=st.integers(1, 5000), key=st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(num_samples: int, key: int) -> None:
    image = permute(np.arange(num_samples), num_samples, key)
    assert sorted(image.tolist()) == list(range(num_samples))


def test_permute_reaches_any_place_of_a_huge_range_at_once() -> None:
    place = np.array([0, 1, 10**12 - 1])
    image = permute(place, 10**12, 7)
    assert len(set(image.tolist())) == 3
    assert ((image >= 0) & (image < 10**12)).all()


def test_permutations_look_random() -> None:
    """Mean displacement of a random permutation is n / 3, and it has one fixed point on average."""
    n = 3000
    images = np.stack([permute(np.arange(n), n, key) for key in range(40)])
    assert np.abs(images - np.arange(n)).mean() == pytest.approx(n / 3, rel=0.02)
    assert (images == np.arange(n)).sum(1).mean() == pytest.approx(1, abs=0.6)
    neighbours = np.corrcoef(images[:, :-1].ravel(), images[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02


@settings(deadline=None)
@given(seed=st.integers(0, 2**62), num_samples=st.integers(1, 200), batch=st.integers(1, 64), step=st.integers(0, 40))
def test_epochs_visit_every_sample_once(seed: int, num_samples: int, batch: int, step: int) -> None:
    steps = -(-num_samples // batch) + step
    stream = np.concatenate([batch_indices(seed, t, batch, num_samples) for t in range(steps)])
    for epoch in range(len(stream) // num_samples):
        assert sorted(stream[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))
    np.testing.assert_array_equal(stream[step * batch :][:batch], batch_indices(seed, step, batch, num_samples))


def test_epochs_and_seeds_differ() -> None:
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_indices(1, 0, 100, 100))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_workers_share_the_slices_out(world_size: int) -> None:
    parts = [list(worker_slices(8, rank, world_size)) for rank in range(world_size)]
    assert [number for part in parts for number in part] == list(range(8))


def test_slices_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8 slices.*3 workers"):
        worker_slices(8, 0, 3)
