"""Explicitness: can each factor be read from the whole code by a linear classifier?"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, check_split


def explicitness_score(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> float:
    """Compute the mean area under the ROC curve of a logistic regression on the standardized code.

    Per factor one multinomial regression (C = 1) is fitted to the train rows. Each value against the rest gives an
    area on the test rows; values have equal weight, and so have factors. The areas are not rescaled to start from 0.
    A rotated code scores the same as an axis-aligned one, because only the information counts.

    Args:
        train_codes: Posterior means (N, D) float; constant latents do not matter.
        train_factors: Factors (N, K) int.
        test_codes: Posterior means (M, D) float.
        test_factors: Factors (M, K) int. A value without train rows counts as the rest, a value without test rows is
            left out, and so is a factor with one value in either set.

    Returns:
        In [0, 1], higher is better: .5 for a code without information, 1 for a code that separates all values,
        although factors of many ordered values stay below it; NaN if no factor varies.

    Raises:
        ValueError: The shapes do not fit, there are no latents, or codes are not finite.

    References:
        Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss", NeurIPS 2018,
        section 2, arXiv:1802.05312; classifier of Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> explicitness_score(factors.astype(float), factors, factors.astype(float), factors)
        1.0
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    scale = StandardScaler().fit(train_codes.astype(np.float64))
    train, test = (scale.transform(codes.astype(np.float64)) for codes in (train_codes, test_codes))
    areas = []
    for train_values, test_values in zip(train_factors.T, test_factors.T, strict=True):
        common = np.intersect1d(train_values, test_values)
        if min(len(np.unique(train_values)), len(np.unique(test_values))) < 2 or not len(common):
            continue
        model = LogisticRegression(max_iter=10_000).fit(train, train_values)
        probabilities = model.predict_proba(test)[:, np.searchsorted(model.classes_, common)]
        values = zip(common, probabilities.T, strict=True)
        areas.append(np.mean([roc_auc_score(test_values == value, column) for value, column in values]))
    return float(np.mean(areas)) if areas else float("nan")
