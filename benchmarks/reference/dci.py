"""Disentanglement, completeness and informativeness as disentanglement_lib computes them, with scikit-learn's trees."""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from benchmarks.reference.representations import Representation

SEEDS, MORE_SEEDS = range(5), range(5, 20)
SPREAD = 0.003  # standard deviation between seeds above which five are too few


def fit_trees(
    train_codes: NDArray[np.float32],
    train_factors: NDArray[np.int64],
    test_codes: NDArray[np.float32],
    test_factors: NDArray[np.int64],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the importance of each latent for each factor (D, K), and the test accuracies (K,)."""
    importances, accuracies = [], []
    for train, test in zip(train_factors.T, test_factors.T, strict=True):
        model = GradientBoostingClassifier(random_state=seed).fit(train_codes, train)
        importances.append(np.abs(model.feature_importances_))
        accuracies.append(np.mean(model.predict(test_codes) == test))
    return np.stack(importances, axis=1), np.array(accuracies)


def _one_minus_entropy(importances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - entropy of each row, in the base of its length; 1e-11 is added as in disentanglement_lib."""
    fractions = importances + 1e-11
    fractions = fractions / fractions.sum(axis=1, keepdims=True)
    return 1 + (fractions * np.log(fractions)).sum(axis=1) / np.log(importances.shape[1])


def disentanglement(importances: NDArray[np.float64]) -> float:
    """Return the mean over latents weighted by their fraction of all importance; NaN with one factor."""
    return float(_one_minus_entropy(importances) @ (importances.sum(axis=1) / importances.sum()))


def completeness(importances: NDArray[np.float64]) -> float:
    """Return the mean over factors weighted by their fraction of all importance; NaN with one latent."""
    return disentanglement(importances.T)


def dci(
    train_codes: NDArray[np.float32],
    train_factors: NDArray[np.int64],
    test_codes: NDArray[np.float32],
    test_factors: NDArray[np.int64],
    seed: int,
) -> dict[str, float]:
    """Return the three scores of Eastwood and Williams (2018)."""
    importances, accuracies = fit_trees(train_codes, train_factors, test_codes, test_factors, seed)
    return {
        "disentanglement": disentanglement(importances),
        "completeness": completeness(importances),
        "informativeness": float(accuracies.mean()),
    }


def golden(data: Representation) -> dict[str, float]:
    """Return the means over seeds, which decide between equally good latents: 20 seeds where the scores vary."""

    def run(seed: int) -> dict[str, float]:
        return dci(data.train_codes, data.train_factors, data.test_codes, data.test_factors, seed)

    runs = [run(seed) for seed in SEEDS]
    if any(np.std([scores[name] for scores in runs]) > SPREAD for name in runs[0]):
        runs += [run(seed) for seed in MORE_SEEDS]
    return {name: float(np.mean([scores[name] for scores in runs])) for name in runs[0]}
