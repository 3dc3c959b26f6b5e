"""Disentanglement, completeness and informativeness as disentanglement_lib computes them, with scikit-learn's trees."""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from benchmarks.reference.representations import Representation

SEEDS, MORE_SEEDS = range(5), range(5, 20)
SPREAD = 0.003  # standard deviation between seeds above which five are too few


def fitted(
    train_codes: NDArray[np.float32],
    train_factors: NDArray[np.int64],
    test_codes: NDArray[np.float32],
    test_factors: NDArray[np.int64],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Importance of each latent for each factor (D, K), and the share of test rows told right (K,)."""
    importances, accuracies = [], []
    for train, test in zip(train_factors.T, test_factors.T, strict=True):
        model = GradientBoostingClassifier(random_state=seed).fit(train_codes, train)
        importances.append(np.abs(model.feature_importances_))
        accuracies.append(np.mean(model.predict(test_codes) == test))
    return np.stack(importances, axis=1), np.array(accuracies)


def _one_minus_entropy(importances: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - entropy of each row, in the base of its length; 1e-11 is added as the reference does."""
    shares = importances + 1e-11
    shares = shares / shares.sum(axis=1, keepdims=True)
    return 1 + (shares * np.log(shares)).sum(axis=1) / np.log(importances.shape[1])


def disentanglement(importances: NDArray[np.float64]) -> float:
    """Mean over latents weighted by their share of all importance; NaN with one factor."""
    return float(_one_minus_entropy(importances) @ (importances.sum(axis=1) / importances.sum()))


def completeness(importances: NDArray[np.float64]) -> float:
    """Mean over factors weighted by their share of all importance; NaN with one latent."""
    return disentanglement(importances.T)


def dci(
    train_codes: NDArray[np.float32],
    train_factors: NDArray[np.int64],
    test_codes: NDArray[np.float32],
    test_factors: NDArray[np.int64],
    seed: int,
) -> dict[str, float]:
    """The three scores of Eastwood & Williams (2018)."""
    importances, accuracies = fitted(train_codes, train_factors, test_codes, test_factors, seed)
    return {
        "disentanglement": disentanglement(importances),
        "completeness": completeness(importances),
        "informativeness": float(accuracies.mean()),
    }


def golden(representation: Representation) -> dict[str, float]:
    """Means over seeds of the trees, which decide between latents that are equally good: 20 where it matters."""
    r = representation

    def run(seed: int) -> dict[str, float]:
        return dci(r.train_codes, r.train_factors, r.test_codes, r.test_factors, seed)

    runs = [run(seed) for seed in SEEDS]
    if any(np.std([found[score] for found in runs]) > SPREAD for score in runs[0]):
        runs += [run(seed) for seed in MORE_SEEDS]
    return {score: float(np.mean([found[score] for found in runs])) for score in runs[0]}
