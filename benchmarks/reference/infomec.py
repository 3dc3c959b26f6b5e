"""InfoMEC of Hsu et al. (2023) from its definitions, on the train rows; neighbors are counted by brute force."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from benchmarks.reference.representations import Representation


def neighbor_information(code: NDArray[np.float64], values: NDArray[np.int64], seed: int) -> float:
    """Return I(code; values) in nats by the distance to the 10th neighbor of the same value (Ross 2014)."""
    # Little noise, as Kraskov et al. (2004) advise, because equal rows have no order.
    code = code + 1e-10 * np.random.default_rng(seed).normal(size=len(code))
    same, within = np.empty(len(code)), np.empty(len(code))
    for value in np.unique(values):
        rows = values == value
        distance = np.abs(code[rows, None] - code)
        radius = np.sort(distance[:, rows], axis=1)[:, 10]  # the first is the row itself
        within[rows] = (distance < radius[:, None]).sum(axis=1)
        same[rows] = rows.sum()
    return max(0.0, float(digamma(len(code)) + digamma(10) - digamma(same).mean() - digamma(within).mean()))


def predictive_cross_entropy(codes: NDArray[np.float64], values: NDArray[np.int64]) -> float:
    """Return the cross entropy, nats, of a logistic regression as published: no penalty, balanced, 100 steps."""
    model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(codes, values)
    return float(log_loss(values, model.predict_proba(codes)))


def concentration(rows: NDArray[np.float64]) -> float:
    """Return the mean over the rows of max / sum, rescaled to [0, 1]; NaN for one column."""
    size = rows.shape[1]
    if size == 1:
        return float("nan")
    fractions = [row.max() / row.sum() if row.sum() > 0 else 1 / size for row in rows]
    return float((np.mean(fractions) - 1 / size) / (1 - 1 / size))


def golden(data: Representation) -> dict[str, float]:
    """Return InfoM, InfoC and InfoE; a row or column without information counts 0, InfoC of one latent is NaN."""
    codes = StandardScaler().fit_transform(data.train_codes.astype(np.float64))
    width = np.ptp(data.train_codes, axis=0)
    active = codes[:, width > width.max() / 20]
    # The mean over draws, because the noise that orders equal codes moves the metrics by .01.
    draws = range(20 if any(len(np.unique(code)) < len(code) / 2 for code in active.T) else 1)
    modular, compact = [], []
    for seed in draws:
        table = np.empty((active.shape[1], data.train_factors.shape[1]))
        for k, values in enumerate(data.train_factors.T):
            frequencies = np.unique(values, return_counts=True)[1] / len(values)
            for j, code in enumerate(active.T):
                table[j, k] = neighbor_information(code, values, seed) / -(frequencies * np.log(frequencies)).sum()
        modular.append(concentration(table))
        compact.append(concentration(table.T))
    nothing = np.zeros_like(codes)
    explained = [
        1 - predictive_cross_entropy(codes, values) / predictive_cross_entropy(nothing, values)
        for values in data.train_factors.T
    ]
    return {"infom": float(np.mean(modular)), "infoc": float(np.mean(compact)), "infoe": float(np.mean(explained))}
