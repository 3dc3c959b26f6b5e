"""SAP: how much better the best single latent predicts a factor than the second best."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, Floats, Mask, check_split, varies

Ints = NDArray[np.int64]

_COST = 0.01
_MAX_STEPS = 500  # ten to thirty are usual


def sap_score(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> float:
    """Compute the separated attribute predictability (SAP): is each factor predicted by one latent alone?

    The mean over the factors of the gap between the test accuracies of the two best latents, by `svm_accuracies`.
    The ceiling is low: a perfect code of dSprites scores .2 to .3, because a linear classifier on one latent
    separates few ordered values. The score depends on the scale of the latents.

    Args:
        train_codes: Posterior means (N, D) float.
        train_factors: Factors (N, K) int; factors with one train value are left out.
        test_codes: Posterior means (M, D) float.
        test_factors: Factors (M, K) int.

    Returns:
        In [0, 1], higher is better; NaN with one latent, which leaves no gap, and if no factor varies.

    Raises:
        ValueError: The shapes do not fit, there are no latents, or codes are not finite.

    References:
        Kumar, Sattigeri and Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations", ICLR 2018, section 3, arXiv:1711.00848; discrete factors as in Locatello et al., ICML 2019,
        arXiv:1811.12359.

    Example:
        >>> factors = np.array([[0], [1]] * 50)
        >>> codes = np.column_stack([factors - 0.5, np.zeros(100)])
        >>> sap_score(codes, factors, codes, factors)
        0.5
    """
    accuracies = svm_accuracies(train_codes, train_factors, test_codes, test_factors)
    ordered = np.sort(accuracies[:, np.isfinite(accuracies).all(axis=0)], axis=0)
    if min(ordered.shape) < 1 or len(ordered) < 2:
        return float("nan")
    return float((ordered[-1] - ordered[-2]).mean())


def svm_accuracies(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> Floats:
    """Compute the test accuracy of each factor by a linear support vector machine on each single latent.

    The classifier is scikit-learn's `LinearSVC(C=0.01, class_weight="balanced")` on the raw latent: squared hinge
    loss, one value against the rest, the offset penalized like the weight. On a constant latent it predicts one value
    always.

    Args:
        train_codes: Posterior means (N, D) float.
        train_factors: Factors (N, K) int.
        test_codes: Posterior means (M, D) float.
        test_factors: Factors (M, K) int; values without train rows count as errors.

    Returns:
        (D, K) in [0, 1]; NaN for a factor with one train value.

    Raises:
        ValueError: As `sap_score`.

    Example:
        >>> factors = np.array([[0], [1]] * 50)
        >>> svm_accuracies(factors - 0.5, factors, factors - 0.5, factors)
        array([[1.]])
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    accuracies = np.full((train_codes.shape[1], train_factors.shape[1]), np.nan)
    varying = np.flatnonzero(varies(train_factors)).tolist()
    if not varying:
        return accuracies
    values, inverses = zip(*(np.unique(train_factors[:, k], return_inverse=True) for k in varying), strict=True)
    labels = np.stack(inverses)
    costs = np.concatenate([_costs(np.bincount(row)) for row in labels], axis=1)
    bounds = np.cumsum([0, *(len(each) for each in values)])
    for j in range(len(accuracies)):
        train, test = (np.asarray(codes[:, j], np.float64) for codes in (train_codes, test_codes))
        weights, offsets = _fit(_Latent.of(train, labels, bounds[:-1], costs))
        for k, first, last, each in zip(varying, bounds, bounds[1:], values, strict=False):
            decisions = np.multiply.outer(test, weights[first:last]) + offsets[first:last]
            accuracies[j, k] = (each[decisions.argmax(axis=1)] == test_factors[:, k]).mean()
    return accuracies


def _costs(counts: Ints) -> Floats:
    """Return the cost of an error on a row of each value, and on a row of the rest, (2, values)."""
    # scikit-learn's "balanced" weighs only the value itself, unless two values share one classifier.
    balanced = _COST * counts.sum() / (len(counts) * counts)
    return np.stack([balanced, balanced[::-1] if len(counts) == 2 else np.full(len(counts), _COST)])


@dataclass(frozen=True)
class _Latent:
    """One latent of N rows, sorted so that two binary searches count the rows that any line misclassifies.

    The rows that a line misclassifies lie on one side of a threshold, so that their number, sum and sum of squares are
    differences of cumulative sums: of all rows by rank, and of the rows of each of V values by rank.

    Attributes:
        codes: (N,), sorted.
        sums: (3, N + 1), cumulative over all rows.
        keys: (K N,), index of the value * (N + 1) + rank, increasing.
        value_sums: (3, K N + 1), cumulative in the order of the keys.
        starts: (V,), index of the first key of each value.
        sizes: (V,), rows of each value.
        costs: (2, V), by `_costs`.
    """

    codes: Floats
    sums: Floats
    keys: Ints
    value_sums: Floats
    starts: Ints
    sizes: Ints
    costs: Floats

    @classmethod
    def of(cls, codes: Floats, labels: Ints, first_values: Ints, costs: Floats) -> "_Latent":
        """Return the latent of codes (N,) with labels (K, N) counted from 0, offset by `first_values` (K,)."""
        order = np.argsort(codes)
        values = labels[:, order] + first_values[:, None]
        ranks = np.argsort(values.astype(np.min_scalar_type(values.max())), axis=1, kind="stable")
        keys = np.take_along_axis(values, ranks, axis=1) * (len(order) + 1) + ranks
        ordered = codes[order]
        sizes = np.bincount(values.ravel(), minlength=costs.shape[1])
        sums, value_sums = _cumulative(ordered), _cumulative(ordered[ranks.ravel()])
        return cls(ordered, sums, keys.ravel(), value_sums, np.cumsum(sizes) - sizes, sizes, costs)

    def sums_beyond(self, threshold: Floats, *, above: Mask, rest: bool) -> Floats:
        """Return count, sum and sum of squares, (3, V), of the rows of each value, or of the rest, past a threshold."""
        rank = np.searchsorted(self.codes, threshold)
        index = np.searchsorted(self.keys, np.arange(len(threshold)) * (len(self.codes) + 1) + rank)
        below = self.value_sums[:, index] - self.value_sums[:, self.starts]
        total = self.value_sums[:, self.starts + self.sizes] - self.value_sums[:, self.starts]
        if rest:
            below, total = self.sums[:, rank] - below, self.sums[:, -1:] - total
        return np.where(above, total - below, below)

    def loss(self, weights: Floats, offsets: Floats) -> tuple[Floats, Floats, Floats]:
        """Return loss (V,), gradient (2, V) and Hessian (3, V): weight-weight, weight-offset, offset-offset."""
        falling = np.signbit(weights)
        value = (weights**2 + offsets**2) / 2
        gradient = np.stack([weights, offsets])
        hessian = np.outer([1.0, 0.0, 1.0], np.ones(len(weights)))
        for sign, rest, cost in ((1.0, False, self.costs[0]), (-1.0, True, self.costs[1])):
            margin = sign - offsets  # a row is misclassified if sign * weight * code < sign * margin
            with np.errstate(divide="ignore", invalid="ignore"):  # at weight 0 all rows or none are misclassified
                threshold = margin / weights
            count, first, second = self.sums_beyond(threshold, above=falling ^ rest, rest=rest)
            value += cost * (count * margin**2 - 2 * margin * weights * first + weights**2 * second)
            gradient += 2 * cost * np.stack([weights * second - margin * first, weights * first - margin * count])
            hessian += 2 * cost * np.stack([second, first, count])
        return value, gradient, hessian


def _cumulative(values: Floats) -> Floats:
    """Return the cumulative count, sum and sum of squares, from 0, (3, n + 1)."""
    sums = np.zeros((3, len(values) + 1))
    sums[0] = np.arange(len(values) + 1)
    np.cumsum(values, out=sums[1, 1:])
    np.cumsum(values**2, out=sums[2, 1:])
    return sums


def _fit(latent: _Latent) -> tuple[Floats, Floats]:
    """Return weight and offset of every value, (V,) each, by damped Newton steps on a convex, piecewise quadratic."""
    params = np.zeros((2, len(latent.sizes)))
    value, gradient, hessian = latent.loss(*params)
    damping = np.ones(len(value))
    for _ in range(_MAX_STEPS):
        ww, wb, bb = hessian
        step = np.stack([bb * gradient[0] - wb * gradient[1], ww * gradient[1] - wb * gradient[0]]) / (ww * bb - wb**2)
        if ((step * gradient).sum(axis=0) <= 1e-12 * value).all():
            params = params - step  # because the loss no longer resolves the last digits, which tiny latents need
            break
        candidate = params - damping * step
        new_value, new_gradient, new_hessian = latent.loss(*candidate)
        better = new_value <= value
        params, value = np.where(better, candidate, params), np.where(better, new_value, value)
        gradient = np.where(better, new_gradient, gradient)
        hessian = np.where(better, new_hessian, hessian)
        damping = np.where(better, 1.0, damping / 2)
    return params[0], params[1]
