"""The BetaVAE metric of Higgins et al. 2017 by the protocol of Locatello et al. 2019, vote by vote."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.reference.factor_vae import ImageSource, Lookup
from benchmarks.reference.representations import SIZES, Representation

PAIRS, TRAIN_VOTES, EVAL_VOTES, SEEDS = 64, 10_000, 5_000, 3


def _votes(source: ImageSource, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return mean differences (count, D), and the factor fixed in each vote."""
    differences, labels = [], []
    for _ in range(count):
        factor = int(rng.integers(len(source.sizes)))
        first, second = source.draw(PAIRS, rng), source.draw(PAIRS, rng)
        second[:, factor] = first[:, factor]
        differences.append(np.mean(np.abs(source.encode(first, rng) - source.encode(second, rng)), axis=0))
        labels.append(factor)
    return np.array(differences), np.array(labels)


def beta_vae(source: ImageSource, seed: int) -> float:
    """Return the accuracy of the classifier on new votes."""
    rng = np.random.default_rng(seed)
    # More than the published 100 steps, because those end far from the optimum where scales differ.
    model = LogisticRegression(max_iter=20_000, tol=1e-6).fit(*_votes(source, TRAIN_VOTES, rng))
    return float(model.score(*_votes(source, EVAL_VOTES, rng)))


def golden(data: Representation) -> dict[str, float]:
    """Return the mean over the seeds."""
    lookup = Lookup(data.train_codes, data.train_factors, SIZES)
    return {"beta_vae": float(np.mean([beta_vae(lookup, seed) for seed in range(SEEDS)]))}
