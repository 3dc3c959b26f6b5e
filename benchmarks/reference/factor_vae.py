"""The FactorVAE metric of Kim, Mnih 2018 by the protocol of Locatello et al. 2019, vote by vote."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference.representations import SIZES, Representation

BATCH, TRAIN_VOTES, EVAL_VOTES, SEEDS = 64, 10_000, 5_000, 3
THRESHOLD = 0.05

Floats = NDArray[np.float64]


class ImageSource(Protocol):
    """Images of any factors, as a model encodes them."""

    sizes: tuple[int, ...]

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return evenly distributed factors (rows, K)."""

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """Return codes (rows, D)."""


class Lookup:
    """Encoder of factors by a random row among those that have them."""

    def __init__(self, codes: NDArray[np.floating], factors: NDArray[np.int64], sizes: tuple[int, ...]) -> None:
        self.codes, self.sizes = codes.astype(np.float64), sizes
        index = np.ravel_multi_index(tuple(factors.T), sizes)
        self.rows = np.argsort(index, kind="stable")
        self.counts = np.bincount(index, minlength=int(np.prod(sizes)))
        self.starts = np.cumsum(self.counts) - self.counts
        if not self.counts.all():
            raise ValueError("factors: some combination has no row. Pass all combinations.")

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return evenly distributed factors (rows, K)."""
        return np.stack([rng.integers(size, size=rows) for size in self.sizes], axis=1)

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """Return codes (rows, D)."""
        index = np.ravel_multi_index(tuple(factors.T), self.sizes)
        return self.codes[self.rows[self.starts[index] + rng.integers(self.counts[index])]]


def _votes(
    source: ImageSource, count: int, variances: Floats, active: NDArray[np.bool_], rng: np.random.Generator
) -> Floats:
    """Return the number of votes for each latent with each factor fixed, (D, K)."""
    votes = np.zeros((len(variances), len(source.sizes)))
    for _ in range(count):
        factor = rng.integers(len(source.sizes))
        factors = source.draw(BATCH, rng)
        factors[:, factor] = factors[0, factor]
        local = np.var(source.encode(factors, rng), axis=0, ddof=1)
        votes[np.flatnonzero(active)[np.argmin(local[active] / variances[active])], factor] += 1
    return votes


def factor_vae(source: ImageSource, seed: int) -> float:
    """Return the accuracy of the majority vote on new votes."""
    rng = np.random.default_rng(seed)
    variances = np.var(source.encode(source.draw(10_000, rng), rng), axis=0, ddof=1)
    active = np.sqrt(variances) >= THRESHOLD
    if not active.any():
        return 0.0
    classifier = _votes(source, TRAIN_VOTES, variances, active, rng).argmax(axis=1)
    votes = _votes(source, EVAL_VOTES, variances, active, rng)
    return sum(votes[latent, factor] for latent, factor in enumerate(classifier)) / votes.sum()


def golden(data: Representation) -> dict[str, float]:
    """Return the mean over the seeds, of the codes as they are and of those scaled to unit deviation.

    The absolute threshold drops active latents of small scale from the first, and noise remains in the second.
    """
    spread = data.train_codes.std(axis=0)
    out = {}
    for name, codes in (("published", data.train_codes), ("unit", data.train_codes / np.where(spread > 0, spread, 1))):
        lookup = Lookup(codes, data.train_factors, SIZES)
        out[name] = float(np.mean([factor_vae(lookup, seed) for seed in range(SEEDS)]))
    return out
