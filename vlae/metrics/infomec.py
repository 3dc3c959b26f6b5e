"""InfoMEC: modularity, compactness and explicitness of a code by mutual information."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, Floats, check_rows
from vlae.metrics.information import entropy

# An active latent's range exceeds this fraction of the widest: Hsu et al. 2023, arXiv:2305.18378.
HSU_ACTIVE_RANGE_DIVISOR = 20


@dataclass(frozen=True)
class InfoMecScores:
    """InfoMEC of a code, higher is better.

    Attributes:
        infom: Does each active latent hold one factor? In [0, 1].
        infoc: Is each factor in one active latent? In [0, 1].
        infoe: Can the factors be read linearly? At most 1, about 0 for a code without information.
    """

    infom: float
    infoc: float
    infoe: float


def info_mec_scores(codes: Array, factors: Factors, *, neighbors: int = 10, seed: int = 0) -> InfoMecScores:
    """Compute InfoM, InfoC and InfoE.

    The normalized information R_jk = I(z_j; v_k) / H(v_k) of active latents is estimated from nearest neighbors.
    InfoM = (mean_j max_k R_jk / sum_k R_jk - 1/K) / (1 - 1/K), InfoC the same of the transposed matrix, and InfoE the
    mean over the factors of 1 - CE / CE_0, with the cross entropies of a logistic regression on all standardized
    latents and of a constant prediction. A latent is active if its range exceeds a 20th of the widest.

    Noise gives .8 for InfoM and .6 for InfoC instead of 0, because little information is unevenly spread by chance:
    read them beside InfoE.

    Args:
        codes: Posterior means (N, D) float; all rows are used to fit and to evaluate, as published.
        factors: Factors (N, K) int; those with one value, or without a value of two rows, are left out.
        neighbors: Number of nearest neighbors, at least 1; fewer where a value has fewer rows.
        seed: Random seed for the noise (1e-10 of a standard deviation) that orders equal codes; where a latent takes
            few values it moves InfoM and InfoC by about .01.

    Returns:
        All NaN if no factor varies; InfoM is NaN if only one does, InfoC if only one latent is active. A latent or
        factor without information counts as 0; InfoM and InfoC are 0 if no latent varies.

    Raises:
        ValueError: The shapes do not fit, there are no latents, codes are not finite, or neighbors is below 1.

    References:
        Hsu et al., "Disentanglement via Latent Quantization", NeurIPS 2023, section 4, arXiv:2305.18378; Ross, "Mutual
        Information between Discrete and Continuous Data Sets", PLoS ONE 9(2), 2014.

    Example:
        >>> factors = np.random.default_rng(0).integers(2, size=(200, 2))
        >>> scores = info_mec_scores(factors.astype(float), factors)
        >>> scores.infom > 0.9, scores.infoc > 0.9, scores.infoe > 0.99
        (True, True, True)
    """
    check_rows(codes, factors)
    if neighbors < 1:
        raise ValueError(f"neighbors: got {neighbors}. Pass at least 1.")
    counts = [np.unique(column, return_counts=True)[1] for column in factors.T]
    columns = factors[:, [len(each) > 1 and each.max() > 1 for each in counts]].T
    if not len(columns):
        return InfoMecScores(float("nan"), float("nan"), float("nan"))
    scaled = StandardScaler().fit_transform(codes.astype(np.float64))
    width = np.ptp(codes, axis=0)
    active = scaled[:, width > width.max() / HSU_ACTIVE_RANGE_DIVISOR]
    information = np.zeros((active.shape[1], len(columns)))
    if active.shape[1]:
        for k, column in enumerate(columns):
            information[:, k] = mutual_info_classif(
                active, column, discrete_features=False, n_neighbors=neighbors, random_state=seed
            ) / entropy(column)
    explained = [1 - _cross_entropy(scaled, column) / np.log(len(np.unique(column))) for column in columns]
    return InfoMecScores(_concentration(information), _concentration(information.T), float(np.mean(explained)))


def _concentration(information: Floats) -> float:
    """Return the mean over the rows of max / sum, rescaled from [1/n, 1] to [0, 1]; a row of zeros counts 0."""
    rows, size = information.shape
    if size == 1:
        return float("nan")
    total = information.sum(axis=1)
    if not rows or not size:
        return 0.0
    largest = information.max(axis=1)[total > 0] / total[total > 0]
    return float(((largest - 1 / size) / (1 - 1 / size)).sum() / rows)


def _cross_entropy(codes: Floats, values: Factors) -> float:
    """Return the cross entropy, in nats, of a logistic regression on the rows it is fitted to."""
    # As published: no penalty, balanced, at most 100 steps of L-BFGS. A code that separates the values has no best
    # regression, so that scikit-learn's warning means nothing; other codes converge within 50 steps.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(codes, values)
    return float(log_loss(values, model.predict_proba(codes)))
