"""The order of the samples, as arithmetic: what step t reads is a function of (seed, t, N) alone.

No table is kept, so a billion samples cost no memory, any step is reached at once, and the only
thing to save for a resume is t. The number of workers does not enter: the global batch is cut into
fixed slices, and a worker takes whole slices.
"""

import numpy as np
from numpy.typing import NDArray

from jobs.data.mixing import mix64

_ROUNDS = 6


def permute(position: NDArray[np.int64], num_samples: int, key: int) -> NDArray[np.int64]:
    """Image of `position` under a pseudo-random permutation of 0..num_samples-1.

    A Feistel network permutes the smallest square of a power of two that holds num_samples; values that
    fall outside walk along their cycle until they are inside (Black, Rogaway 2002). At most 4 in 4 of
    every 16 positions walk on, so a few rounds suffice.

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
    for turn in range(_ROUNDS):
        left, right = right, left ^ (mix64(key, turn, right) & mask)
    return (left << shift) | right


def batch_indices(seed: int, step: int, batch_size: int, num_samples: int) -> NDArray[np.int64]:
    """Samples of the global batch of `step`, (batch_size,) int64 in [0, num_samples).

    Batches follow one another through the epochs without a gap: each epoch visits every sample once,
    in an order of its own, and a batch may span the end of one and the start of the next.
    """
    place = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, position = place // num_samples, place % num_samples
    out = np.empty(batch_size, np.int64)
    for number in np.unique(epoch):
        here = epoch == number
        out[here] = permute(position[here], num_samples, int(mix64(seed, number)))
    return out


def worker_slices(num_slices: int, rank: int, world_size: int) -> range:
    """Slices of the global batch that worker `rank` of `world_size` computes.

    Raises:
        ValueError: num_slices is no multiple of world_size.
    """
    if num_slices % world_size:
        raise ValueError(f"{num_slices} slices cannot be shared out evenly to {world_size} workers")
    share = num_slices // world_size
    return range(rank * share, (rank + 1) * share)
