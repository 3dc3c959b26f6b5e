"""Synthetic representations, from perfect to useless, that every metric is tested on.

Three factors of 3, 4 and 6 values; codes are float32, as a model's are. Each has its own fixed seed; the
golden values in tests/vlae/metrics/golden, by make_golden.py, belong to these arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZES = (3, 4, 6)
TRAIN, TEST = 1500, 750


@dataclass(frozen=True)
class Representation:
    """Codes and factors of train and test rows.

    Attributes:
        train_codes: (N, D) float32.
        train_factors: (N, 3) int64.
        test_codes: (M, D) float32.
        test_factors: (M, 3) int64.
    """

    train_codes: NDArray[np.float32]
    train_factors: NDArray[np.int64]
    test_codes: NDArray[np.float32]
    test_factors: NDArray[np.int64]


def _unit(factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the factors rescaled to [-1, 1]."""
    return 2 * factors / (np.array(SIZES) - 1) - 1


def _jittered(factors: NDArray[np.int64], rng: np.random.Generator, scale: float = 0.02) -> NDArray[np.float64]:
    return _unit(factors) + rng.normal(0, scale, factors.shape)


def _rotated(factors: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    rotation, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))
    return _jittered(factors, rng) @ rotation


def _merged(factors: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    # One latent holds the first two factors, another the third.
    both = factors[:, 0] * SIZES[1] + factors[:, 1]
    return np.stack([both, factors[:, 2]], axis=1) + rng.normal(0, 0.05, (len(factors), 2))


def _circular(factors: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    # The third factor is an angle in two latents.
    angle = 2 * np.pi * factors[:, 2] / SIZES[2]
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, 0.05, (len(factors), 2))
    return np.concatenate([_unit(factors)[:, :2] + rng.normal(0, 0.02, (len(factors), 2)), circle], axis=1)


_MAKERS: dict[str, Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.float64]]] = {
    "perfect": _jittered,
    "exact": lambda v, _: _unit(v),  # no noise: many equal values
    "constant_latents": lambda v, rng: np.concatenate([_jittered(v, rng), np.zeros((len(v), 5))], axis=1),
    "inactive_latents": lambda v, rng: np.concatenate([_jittered(v, rng), rng.normal(0, 1e-3, (len(v), 3))], axis=1),
    "noisy": lambda v, rng: _jittered(v, rng, 0.5),
    "rotated": _rotated,
    "duplicated": lambda v, rng: np.concatenate([_jittered(v, rng), _jittered(v, rng)], axis=1),
    "many_copies": lambda v, rng: np.concatenate([_jittered(v, rng, 0.2) for _ in range(4)], axis=1),
    "merged": _merged,
    "monotone": lambda v, rng: np.exp(2 * _jittered(v, rng)),
    "scaled": lambda v, rng: _jittered(v, rng) * np.array([1e-3, 1.0, 1e3]),
    "circular": _circular,
    "partial": lambda v, rng: np.concatenate([_jittered(v, rng)[:, 1:], rng.normal(size=(len(v), 2))], axis=1),
    "random": lambda v, rng: rng.normal(size=(len(v), 4)),
    "one_latent": lambda v, rng: _jittered(v, rng)[:, 2:],
}
NAMES = tuple(_MAKERS)


def representation(name: str) -> Representation:
    """Return the arrays of one of `NAMES`."""
    rng = np.random.default_rng(NAMES.index(name))
    factors = np.stack([rng.integers(size, size=TRAIN + TEST) for size in SIZES], axis=1)
    codes = _MAKERS[name](factors, rng).astype(np.float32)
    return Representation(codes[:TRAIN], factors[:TRAIN], codes[TRAIN:], factors[TRAIN:])


class NewImages:
    """Encoder that mixes the factors and adds new noise at every call, as a model encodes newly rendered images.

    Args:
        mix: Matrix (3, D) from the factors, each rescaled to [-0.5, 0.5], to the codes.
        noise: Standard deviation of the noise.
    """

    sizes = SIZES

    def __init__(self, mix: NDArray[np.float64], noise: float) -> None:
        self._mix, self._noise = mix, noise

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return evenly distributed factors (rows, 3)."""
        return rng.integers(SIZES, size=(rows, len(SIZES)))

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return codes (rows, D)."""
        codes = _unit(factors) / 2 @ self._mix
        return codes + rng.normal(0, self._noise, codes.shape)
