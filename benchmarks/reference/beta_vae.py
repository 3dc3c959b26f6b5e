"""The BetaVAE score of Higgins et al. 2017 by the protocol of Locatello et al. 2019, vote by vote."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.reference.factor_vae import Lookup
from benchmarks.reference.representations import SIZES, Representation

PAIRS, TRAIN_VOTES, EVAL_VOTES, SEEDS = 64, 10_000, 5_000, 3


def _votes(lookup: Lookup, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Differences (count, D), and the factor fixed in each."""
    points, labels = [], []
    for _ in range(count):
        factor = int(rng.integers(len(lookup.sizes)))
        first, second = lookup.draw(PAIRS, rng), lookup.draw(PAIRS, rng)
        second[:, factor] = first[:, factor]
        points.append(np.mean(np.abs(lookup.encode(first, rng) - lookup.encode(second, rng)), axis=0))
        labels.append(factor)
    return np.array(points), np.array(labels)


def beta_vae(lookup: Lookup, seed: int) -> float:
    """Accuracy of the classifier on new votes."""
    rng = np.random.default_rng(seed)
    # More steps than the published 100: at unlike scales those end far from the optimum.
    model = LogisticRegression(max_iter=20_000, tol=1e-6).fit(*_votes(lookup, TRAIN_VOTES, rng))
    return float(model.score(*_votes(lookup, EVAL_VOTES, rng)))


def golden(data: Representation) -> dict[str, float]:
    """Mean over the seeds."""
    lookup = Lookup(data.train_codes, data.train_factors, SIZES)
    return {"beta_vae": float(np.mean([beta_vae(lookup, seed) for seed in range(SEEDS)]))}
