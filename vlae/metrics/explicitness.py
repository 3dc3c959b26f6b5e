"""Explicitness: can each factor be read from the whole code by a linear classifier?"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, Factors, check_split, varies


def explicitness_score(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> float:
    """Mean area under the ROC curve of a logistic regression on the standardized code.

    Per factor one multinomial regression with scikit-learn's penalty (C = 1) is fitted to the train rows; each value
    against the rest gives an area on the test rows; the values have equal weight, and so have the factors (Ridgeway
    and Mozer 2018, section 2, as in Locatello et al. 2019; not stretched to start from 0). It asks only that the
    code tells the factors, not that it separates them: a rotated code scores what the straight one does.

    Args:
        train_codes: (N, D) float, posterior means; constant latents do not matter.
        train_factors: (N, K) int.
        test_codes: (M, D) float.
        test_factors: (M, K) int. A value that no train row has counts as "the rest"; one that no test row has is
            left out; so is a factor with one value in either set.

    Raises:
        ValueError: shapes that do not fit, no latents, or codes that are not finite.

    Returns:
        In [0, 1], higher is better: .5 for a code that tells nothing, 1 for one that tells all, although factors of
        many ordered values stay below it; NaN if no factor varies.
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    scale = StandardScaler().fit(train_codes.astype(np.float64))
    train, test = (scale.transform(codes.astype(np.float64)) for codes in (train_codes, test_codes))
    areas = []
    for values, truth in zip(train_factors.T, test_factors.T, strict=True):
        shared = np.intersect1d(values, truth)
        if varies(values) and varies(truth) and len(shared):
            areas.append(_area(train, values, test, truth, shared))
    return float(np.mean(areas)) if areas else float("nan")


def _area(
    train: NDArray[np.float64],
    values: NDArray[np.integer],
    test: NDArray[np.float64],
    truth: NDArray[np.integer],
    shared: NDArray[np.integer],
) -> float:
    """Area of one factor, mean over the values `shared` by train and test rows."""
    model = LogisticRegression(max_iter=10_000).fit(train, values)
    shares = model.predict_proba(test)
    columns = np.searchsorted(model.classes_, shared)
    return float(np.mean([roc_auc_score(truth == v, shares[:, c]) for v, c in zip(shared, columns, strict=True)]))
