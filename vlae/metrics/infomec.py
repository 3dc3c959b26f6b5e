"""InfoMEC: modularity, compactness and explicitness of a code, in shares of information."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, check_rows
from vlae.metrics.information import entropy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class InfoMec:
    """Scores of `info_mec_scores`, higher is better.

    infom: in [0, 1], does each active latent hold one factor? infoc: in [0, 1], is each factor in one active latent?
    infoe: at most 1, can the factors be read linearly? About 0 for a code that tells nothing.
    """

    infom: float
    infoc: float
    infoe: float


def info_mec_scores(codes: Array, factors: Factors, *, neighbors: int = 10, seed: int = 0) -> InfoMec:
    """InfoM, InfoC and InfoE (Hsu et al. 2023, "Disentanglement via latent quantization", section 4).

    The information of a latent about a factor is estimated from nearest neighbors (Ross 2014), over the factor's
    entropy. A latent is active if its range is more than a twentieth of the widest. InfoM is the mean over the active
    latents, InfoC over the factors, of the largest share of a latent's (a factor's) information, moved so that equal
    shares give 0 and one alone gives 1. InfoE is the mean over the factors of 1 - CE/CE0: cross entropies in nats of
    a logistic regression on all standardized latents, inactive ones too, and of one on nothing.

    Pure noise gives .8 rather than 0 for InfoM, and .6 for InfoC: the shares of next to no information are accidental.
    Read them beside InfoE.

    Args:
        codes: (N, D) float. All rows serve to fit and to judge, as published.
        factors: (N, K) int; left out are those with one value and those whose values are all of one row.
        neighbors: of the estimate; fewer where a value has fewer rows.
        seed: of a trace of noise (1e-10 of a deviation) that orders equal codes: where a latent takes few values
            only, it moves InfoM and InfoC by about .01.

    Raises:
        ValueError: shapes that do not fit, no latents, codes that are not finite, or neighbors below 1.

    Returns:
        NaN for all three if no factor varies, for InfoM if only one does, and for InfoC if only one latent is active.
        A latent or factor without any information counts as 0; InfoM and InfoC are 0 if no latent varies.
    """
    check_rows(codes, factors)
    if not codes.shape[1] or neighbors < 1:
        raise ValueError(f"need latents and neighbors > 0, got codes {codes.shape}, neighbors {neighbors}")
    counts = [np.unique(column, return_counts=True)[1] for column in factors.T]
    known = factors[:, [len(each) > 1 and each.max() > 1 for each in counts]]
    if not known.shape[1]:
        return InfoMec(*[float("nan")] * 3)
    scaled = StandardScaler().fit_transform(codes.astype(np.float64))
    width = np.ptp(codes, axis=0)
    shares = _shares(scaled[:, width > width.max() / 20], known, neighbors, seed)
    explained = [1 - _cross_entropy(scaled, column) / np.log(len(np.unique(column))) for column in known.T]
    return InfoMec(_concentration(shares), _concentration(shares.T), float(np.mean(explained)))


def _shares(codes: Floats, factors: Factors, neighbors: int, seed: int) -> Floats:
    """Information of each latent about each factor over the factor's entropy, (D, K)."""
    if not codes.shape[1]:
        return np.zeros((0, factors.shape[1]))
    columns = [
        mutual_info_classif(codes, column, discrete_features=False, n_neighbors=neighbors, random_state=seed)
        / entropy(column)
        for column in factors.T
    ]
    return np.stack(columns, axis=1)


def _concentration(shares: Floats) -> float:
    """Mean over the rows of the largest share of the row, from 0 for equal shares to 1; a row of zeros counts 0."""
    rows, size = shares.shape
    if size == 1:
        return float("nan")
    total = shares.sum(axis=1)
    if not rows or not size:
        return 0.0
    largest = shares.max(axis=1)[total > 0] / total[total > 0]
    return float(((largest - 1 / size) / (1 - 1 / size)).sum() / rows)


def _cross_entropy(codes: Floats, values: NDArray[np.integer]) -> float:
    """Cross entropy in nats of a logistic regression on the rows it is fitted to; log(number of values) from nothing.

    As published: no penalty, balanced, L-BFGS stopped after 100 steps. A code that separates the values has no best
    regression, so that not to converge is no fault; others are there within 50 steps.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(codes, values)
    return float(log_loss(values, model.predict_proba(codes)))
