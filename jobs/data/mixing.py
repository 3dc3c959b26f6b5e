"""Counter-based randomness: a value is a function of its key, so any part can be made alone."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(*words: ArrayLike) -> NDArray[np.uint64]:
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
