"""The order of the samples as arithmetic: the batch of step t is a function of (seed, t, number of samples) alone.

No table is kept: any step is reached at once, and a resume needs only t. The global batch is cut into microbatches of
fixed size, and a worker takes whole microbatches, so that the number of workers does not enter.

References:
    Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (SplitMix64).
    Luby, Rackoff: How to Construct Pseudorandom Permutations from Pseudorandom Functions, SIAM J. Comput. 1988.
    Black, Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002 (cycle walking).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Four Feistel rounds make a strong pseudo-random permutation; halves of at most three bits need more to mix well.
_ROUNDS, _ROUNDS_IF_SMALL = 4, 16
_CHUNK = 8192  # positions whose samples are computed together


def splitmix64(*integers: ArrayLike) -> NDArray[np.uint64]:
    """Return uniform uint64 hashes of integers, elementwise with broadcasting; negative ones wrap modulo 2^64.

    The finalizer of SplitMix64 is chained over the arguments. The hash is not cryptographic.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for integer in integers:
            state = (state + _GOLDEN) ^ np.asarray(integer).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permute(position: NDArray[np.int64], num_samples: int, key: int) -> NDArray[np.int64]:
    """Return the images, int64, of positions under the pseudo-random permutation `key` of 0..num_samples-1.

    A Feistel network permutes the smallest even power of two that is at least num_samples. Values outside walk along
    their cycle until they are inside; at most three in four are outside at each step.
    """
    half = max(1, (int(num_samples - 1).bit_length() + 1) // 2)
    image = position.astype(np.uint64)
    outside = np.ones(image.shape, bool)
    while outside.any():
        image[outside] = _feistel(image[outside], half, key)
        outside = image >= num_samples
    return image.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half: int, key: int) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & mask
    for turn in range(_ROUNDS if half > 3 else _ROUNDS_IF_SMALL):
        left, right = right, left ^ (splitmix64(key, turn, right) & mask)
    return (left << shift) | right


def worker_microbatches(num_microbatches: int, rank: int, world_size: int) -> range:
    """Return the microbatches that a worker computes; counts of workers differ by at most one.

    Raises:
        ValueError: There are more workers than microbatches.

    Example:
        >>> worker_microbatches(8, rank=1, world_size=3)
        range(2, 5)
    """
    if world_size > num_microbatches:
        raise ValueError(f"{num_microbatches} microbatches cannot be divided among {world_size} workers")
    return range(rank * num_microbatches // world_size, (rank + 1) * num_microbatches // world_size)


def microbatch_positions(microbatches: range, microbatch_size: int) -> range:
    """Return the positions of consecutive microbatches in the global batch."""
    return range(microbatches.start * microbatch_size, microbatches.stop * microbatch_size)


class GlobalShuffle:
    """Determines which samples each step reads.

    Batches follow one another through the epochs without a gap, so that a batch may span two epochs. Each epoch visits
    every sample once in its own order. With `block_shards`, an epoch shuffles the shards, cuts them into blocks, and
    shuffles the samples within each block, so that only a block or two have to be on the local disk at a time. Without,
    no state grows with the data.

    Args:
        shard_sizes: Samples in each shard; sample ids count through the shards.
        batch_size: Samples of a global batch over all workers.
        seed: Random seed of the order.
        block_shards: Shards that are shuffled together; 0: all.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | NDArray[np.int64], *, batch_size: int, seed: int, block_shards: int = 0
    ) -> None:
        self.num_samples, self.batch_size, self.seed = int(np.sum(shard_sizes)), batch_size, seed
        self._block_shards = block_shards if block_shards < len(shard_sizes) else 0
        self._shard_sizes = np.asarray(shard_sizes, np.int64) if self._block_shards else np.zeros(0, np.int64)
        self._chunk_size = min(_CHUNK, self.num_samples)
        # Caches of the last results; both are pure functions of their arguments.
        self._chunk = lru_cache(2)(self._compute_chunk)
        self._plan = lru_cache(2)(self._compute_plan)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the sample ids of the global batch of a step (from 0), (batch_size,) int64 in [0, num_samples)."""
        return self.sample_ids(step, range(self.batch_size))

    def sample_ids(self, step: int, positions: range) -> NDArray[np.int64]:
        """Return the sample ids at consecutive positions of a global batch, (len(positions),) int64.

        The cost for a worker that always requests the same positions is independent of the global batch size.
        """
        chunk, row = divmod(step, self._steps_per_chunk(positions))
        ids: NDArray[np.int64] = self._chunk(chunk, positions)[row]
        return ids

    def _steps_per_chunk(self, positions: range) -> int:
        """Return how many steps are computed together, because few samples at a time would cost far more each."""
        return max(1, self._chunk_size // len(positions))

    def _compute_chunk(self, chunk: int, positions: range) -> NDArray[np.int64]:
        """Return the ids at these positions of the batches of a chunk of steps, (steps, len(positions))."""
        count = self._steps_per_chunk(positions)
        starts = (chunk * count + np.arange(count, dtype=np.int64)) * self.batch_size
        offsets = (starts[:, None] + np.arange(positions.start, positions.stop, dtype=np.int64)).reshape(-1)
        epochs, position = np.divmod(offsets, self.num_samples)
        first, last = int(epochs[0]), int(epochs[-1])
        ids = [self._lookup(epoch, position[epochs == epoch]) for epoch in range(first, last + 1)]
        return np.concatenate(ids).reshape(count, len(positions))

    def blocks(self, step: int) -> list[NDArray[np.int64]]:
        """Return the shards of the block in which a step ends and of the next; [] if all are shuffled together."""
        if not self._block_shards:
            return []
        epoch, position = divmod((step + 1) * self.batch_size - 1, self.num_samples)
        plan = self._plan(epoch)
        block = int(np.searchsorted(plan.starts, position, side="right")) - 1
        is_last = block + 1 == len(plan.starts)
        return [plan.shards(block), self._plan(epoch + 1).shards(0) if is_last else plan.shards(block + 1)]

    def _lookup(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at positions of an epoch."""
        if not self._block_shards:
            return permute(position, self.num_samples, self._key(epoch))
        return self._plan(epoch).lookup(position)

    def _compute_plan(self, epoch: int) -> "_EpochPlan":
        return _EpochPlan(self._shard_sizes, self._block_shards, self._key(epoch))

    def _key(self, epoch: int) -> int:
        return int(splitmix64(self.seed, epoch))


class _EpochPlan:
    """The blocks of one epoch: some integers per shard."""

    def __init__(self, shard_sizes: NDArray[np.int64], block_shards: int, key: int) -> None:
        self._key, self._block_shards = key, block_shards
        self._order = permute(np.arange(len(shard_sizes)), len(shard_sizes), key)  # slot -> shard
        self._slot_starts = np.concatenate([[0], np.cumsum(shard_sizes[self._order])])  # in this epoch
        self._first_id = (np.cumsum(shard_sizes) - shard_sizes)[self._order]  # of the shard in each slot
        self.starts = self._slot_starts[:-1:block_shards]  # of each block
        self._block_sizes = np.diff(np.append(self.starts, self._slot_starts[-1]))

    def shards(self, block: int) -> NDArray[np.int64]:
        return self._order[block * self._block_shards : (block + 1) * self._block_shards]

    def lookup(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at positions of the epoch."""
        blocks = np.searchsorted(self.starts, position, side="right") - 1
        shuffled = np.empty_like(position)
        for block in np.unique(blocks):
            rows = blocks == block
            start, key = self.starts[block], int(splitmix64(self._key, block))
            shuffled[rows] = start + permute(position[rows] - start, int(self._block_sizes[block]), key)
        slot = np.searchsorted(self._slot_starts, shuffled, side="right") - 1
        ids: NDArray[np.int64] = self._first_id[slot] + shuffled - self._slot_starts[slot]
        return ids
