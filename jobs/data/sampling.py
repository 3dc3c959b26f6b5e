"""The order of the samples, as arithmetic: what step t reads is a function of (seed, t, N) alone.

No table is kept, so a billion samples cost no memory, any step is reached at once, and the only
thing to save for a resume is t. The number of workers does not enter: the global batch is cut into
fixed slices, and a worker takes whole slices.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(*words: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers, elementwise with broadcasting, to uniform 64-bit words.

    Chains the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over the words. Not cryptographic.

    Args:
        words: integers or integer arrays, one after the other; negative ones wrap modulo 2^64.

    Returns:
        uint64 array of the broadcast shape.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = (state + _GOLDEN) ^ np.asarray(word).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


# Four make a strong pseudo-random permutation (Luby, Rackoff 1988); halves of three bits or less mix badly.
_ROUNDS, _FEW = 4, 16
_BLOCK = 8192  # places whose samples are computed together


def permute(position: NDArray[np.int64], num_samples: int, key: int) -> NDArray[np.int64]:
    """Image of `position` under a pseudo-random permutation of 0..num_samples-1.

    A Feistel network permutes the smallest square of a power of two that holds num_samples; values that
    fall outside walk along their cycle until they are inside (Black, Rogaway 2002); at most three in four do
    at each turn.

    Args:
        position: int64 array, each in [0, num_samples).
        num_samples: size N of the permuted range, >= 1.
        key: which permutation.

    Returns:
        int64 array of the same shape; distinct positions give distinct images.
    """
    half = max(1, (int(num_samples - 1).bit_length() + 1) // 2)
    out = position.astype(np.uint64)
    walking = np.ones(out.shape, bool)
    while walking.any():
        out[walking] = _feistel(out[walking], half, key)
        walking = out >= num_samples
    return out.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half: int, key: int) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & mask
    for turn in range(_ROUNDS if half > 3 else _FEW):
        left, right = right, left ^ (splitmix64(key, turn, right) & mask)
    return (left << shift) | right


def worker_slices(num_microbatches: int, rank: int, world_size: int) -> range:
    """Slices of the global batch that worker `rank` of `world_size` computes: as many as the others', or one more.

    Raises:
        ValueError: there are more workers than slices.
    """
    if world_size > num_microbatches:
        raise ValueError(f"{num_microbatches} slices cannot be shared out to {world_size} workers")
    return range(rank * num_microbatches // world_size, (rank + 1) * num_microbatches // world_size)


def slice_places(slices: range, slice_size: int) -> range:
    """Places in the global batch of some neighboring slices of `slice_size` images."""
    return range(slices.start * slice_size, slices.stop * slice_size)


class Order:
    """Which samples each step reads.

    Batches follow one another through the epochs without a gap: each epoch visits every sample once, in an
    order of its own, and a batch may span the end of one and the start of the next.

    With a window, an epoch shuffles the shards, cuts them into windows of so many, and shuffles the samples
    within each window: only a window or two have to be on the local disk at a time. Without, all samples are
    shuffled together, and nothing that grows with the data is kept.

    Args:
        shard_sizes: samples in each shard; a sample's number counts through the shards.
        batch_size: samples of a global batch, all workers together.
        seed: of the order.
        window: shards that are shuffled together; 0: all.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | NDArray[np.int64], *, batch_size: int, seed: int, window: int = 0
    ) -> None:
        self.num_samples, self.batch_size, self.seed = int(np.sum(shard_sizes)), batch_size, seed
        self._window = window if window < len(shard_sizes) else 0
        self._sizes = np.asarray(shard_sizes, np.int64) if self._window else np.zeros(0, np.int64)
        self._block_size = min(_BLOCK, self.num_samples)
        # What was computed last is kept; both are functions of their argument alone.
        self._block = lru_cache(2)(self._compute_block)
        self._plan = lru_cache(2)(self._compute_plan)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Samples of the global batch of `step`, (batch_size,) int64 in [0, num_samples)."""
        return self.share(step, range(self.batch_size))

    def share(self, step: int, places: range) -> NDArray[np.int64]:
        """Samples at some neighboring places of the global batch of `step`, (len(places),) int64.

        A worker that always asks for the same places pays for these alone, however large the global batch is.
        """
        number, row = divmod(step, self._steps(places))
        samples: NDArray[np.int64] = self._block(number, places)[row]
        return samples

    def _steps(self, places: range) -> int:
        """So many steps are computed together, because few samples at a time would cost far more each."""
        return max(1, self._block_size // len(places))

    def _compute_block(self, number: int, places: range) -> NDArray[np.int64]:
        """Samples at these places of the batches of a block of steps, (steps, len(places))."""
        count = self._steps(places)
        starts = (number * count + np.arange(count, dtype=np.int64)) * self.batch_size
        place = (starts[:, None] + np.arange(places.start, places.stop, dtype=np.int64)).reshape(-1)
        epochs, position = np.divmod(place, self.num_samples)
        first, last = int(epochs[0]), int(epochs[-1])
        parts = [self._lookup(epoch, position[epochs == epoch]) for epoch in range(first, last + 1)]
        return np.concatenate(parts).reshape(count, len(places))

    def windows(self, step: int) -> list[NDArray[np.int64]]:
        """Shards of the window that `step` ends in and of the one after it; empty where there are no windows."""
        if not self._window:
            return []
        epoch, position = divmod((step + 1) * self.batch_size - 1, self.num_samples)
        plan = self._plan(epoch)
        now = int(np.searchsorted(plan.starts, position, side="right")) - 1
        last = now + 1 == len(plan.starts)
        return [plan.shards(now), self._plan(epoch + 1).shards(0) if last else plan.shards(now + 1)]

    def _lookup(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._window:
            return permute(position, self.num_samples, self._key(epoch))
        return self._plan(epoch).visit(position)

    def _compute_plan(self, epoch: int) -> "_EpochPlan":
        return _EpochPlan(self._sizes, self._window, self._key(epoch))

    def _key(self, epoch: int) -> int:
        return int(splitmix64(self.seed, epoch))


class _EpochPlan:
    """The windows of one epoch: some integers per shard."""

    def __init__(self, sizes: NDArray[np.int64], window: int, key: int) -> None:
        self.key, self._window = key, window
        self._order = permute(np.arange(len(sizes)), len(sizes), key)  # slot -> shard
        self._slot_starts = np.concatenate([[0], np.cumsum(sizes[self._order])])  # in this epoch
        self._first_sample = (np.cumsum(sizes) - sizes)[self._order]  # of the shard in each slot
        self.starts = self._slot_starts[:-1:window]  # of each window
        self._window_sizes = np.diff(np.append(self.starts, self._slot_starts[-1]))

    def shards(self, window: int) -> NDArray[np.int64]:
        return self._order[window * self._window : (window + 1) * self._window]

    def visit(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples at these positions of the epoch."""
        window = np.searchsorted(self.starts, position, side="right") - 1
        shuffled = np.empty_like(position)
        for number in np.unique(window):
            here = window == number
            start, key = self.starts[number], int(splitmix64(self.key, number))
            shuffled[here] = start + permute(position[here] - start, int(self._window_sizes[number]), key)
        slot = np.searchsorted(self._slot_starts, shuffled, side="right") - 1
        samples: NDArray[np.int64] = self._first_sample[slot] + shuffled - self._slot_starts[slot]
        return samples
