"""The FactorVAE score of Kim, Mnih 2018 by the protocol of Locatello et al. 2019, vote by vote."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference.representations import SIZES, Representation

BATCH, TRAIN_VOTES, EVAL_VOTES, SEEDS = 64, 10_000, 5_000, 3
THRESHOLD = 0.05

Floats = NDArray[np.float64]


class Lookup:
    """An encoder of factors: a random row among those that have them."""

    def __init__(self, codes: NDArray[np.floating], factors: NDArray[np.int64], sizes: tuple[int, ...]) -> None:
        self.codes, self.sizes = codes.astype(np.float64), sizes
        place = np.ravel_multi_index(tuple(factors.T), sizes)
        self.rows = np.argsort(place, kind="stable")
        self.counts = np.bincount(place, minlength=int(np.prod(sizes)))
        self.starts = np.cumsum(self.counts) - self.counts
        if not self.counts.all():
            raise ValueError("some combination of factors has no row")

    def draw(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Factors (rows, K), evenly."""
        return np.stack([rng.integers(size, size=rows) for size in self.sizes], axis=1)

    def encode(self, factors: NDArray[np.int64], rng: np.random.Generator) -> Floats:
        """Codes (rows, D)."""
        place = np.ravel_multi_index(tuple(factors.T), self.sizes)
        return self.codes[self.rows[self.starts[place] + rng.integers(self.counts[place])]]


def _votes(
    lookup: Lookup, count: int, variances: Floats, active: NDArray[np.bool_], rng: np.random.Generator
) -> Floats:
    """How often each latent won with each factor fixed, (D, K)."""
    votes = np.zeros((len(variances), len(lookup.sizes)))
    for _ in range(count):
        factor = rng.integers(len(lookup.sizes))
        factors = lookup.draw(BATCH, rng)
        factors[:, factor] = factors[0, factor]
        local = np.var(lookup.encode(factors, rng), axis=0, ddof=1)
        votes[np.flatnonzero(active)[np.argmin(local[active] / variances[active])], factor] += 1
    return votes


def factor_vae(lookup: Lookup, seed: int) -> float:
    """Accuracy of the majority vote on new votes."""
    rng = np.random.default_rng(seed)
    variances = np.var(lookup.encode(lookup.draw(10_000, rng), rng), axis=0, ddof=1)
    active = np.sqrt(variances) >= THRESHOLD
    if not active.any():
        return 0.0
    classifier = _votes(lookup, TRAIN_VOTES, variances, active, rng).argmax(axis=1)
    votes = _votes(lookup, EVAL_VOTES, variances, active, rng)
    return sum(votes[latent, factor] for latent, factor in enumerate(classifier)) / votes.sum()


def golden(data: Representation) -> dict[str, float]:
    """Mean over the seeds, of the codes as they are and of the codes that vary brought to unit deviation.

    The absolute threshold drops live latents of small scale from the first, and noise stays in the second.
    """
    spread = data.train_codes.std(axis=0)
    out = {}
    for name, codes in (("published", data.train_codes), ("unit", data.train_codes / np.where(spread > 0, spread, 1))):
        lookup = Lookup(codes, data.train_factors, SIZES)
        out[name] = float(np.mean([factor_vae(lookup, seed) for seed in range(SEEDS)]))
    return out
