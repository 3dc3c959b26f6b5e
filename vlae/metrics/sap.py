"""SAP: how much better the best single latent predicts a factor than the next best."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, check_split, varies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COST = 0.01
STEPS = 500  # ten to thirty are usual


def sap_score(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> float:
    """Separated attribute predictability: is each factor predicted by one latent alone?

    Mean over the factors of the gap between the test accuracies of the two latents that predict it best
    (Kumar et al. 2018, section 3; discrete factors as in Locatello et al. 2019). See `svm_accuracies`.

    The ceiling is low: a perfect code of dSprites scores .2 to .3, because a linear machine on one latent tells few
    ordered values apart. The score depends on the scale of the latents.

    Args:
        train_codes: (N, D) float, posterior means.
        train_factors: (N, K) int; factors with one value here are left out.
        test_codes: (M, D) float.
        test_factors: (M, K) int.

    Raises:
        ValueError: shapes that do not fit, no latents, or codes that are not finite.

    Returns:
        In [0, 1], higher is better; NaN with one latent, which leaves no gap, and if no factor varies.
    """
    accuracies = svm_accuracies(train_codes, train_factors, test_codes, test_factors)
    ordered = np.sort(accuracies[:, np.isfinite(accuracies).all(axis=0)], axis=0)
    if min(ordered.shape) < 1 or len(ordered) < 2:
        return float("nan")
    return float((ordered[-1] - ordered[-2]).mean())


def svm_accuracies(train_codes: Array, train_factors: Factors, test_codes: Array, test_factors: Factors) -> Floats:
    """Test accuracy in [0, 1] of each factor by each latent, (D, K); NaN for a factor with one train value.

    The classifier is scikit-learn's `LinearSVC(C=0.01, class_weight="balanced")` on one raw latent: squared hinge,
    one value against the rest, the offset penalized like the weight. A constant latent is no special case: it
    predicts one value always. Test values that no train row has count as mistakes.

    Args and errors are those of `sap_score`.
    """
    check_split(train_codes, train_factors, test_codes, test_factors)
    out = np.full((train_codes.shape[1], train_factors.shape[1]), np.nan)
    varying = np.flatnonzero(varies(train_factors)).tolist()
    if not varying:
        return out
    named = [np.unique(train_factors[:, k], return_inverse=True) for k in varying]
    labels = np.stack([inverse for _, inverse in named])
    costs = np.concatenate([_costs(np.bincount(row)) for row in labels], axis=1)
    bounds = np.cumsum([0, *(len(values) for values, _ in named)])
    for j in range(len(out)):
        train, test = (np.asarray(codes[:, j], np.float64) for codes in (train_codes, test_codes))
        weights, offsets = _fit(_Latent.of(train, labels, bounds[:-1], costs))
        for k, first, last, (values, _) in zip(varying, bounds, bounds[1:], named, strict=False):
            decisions = np.multiply.outer(test, weights[first:last]) + offsets[first:last]
            out[j, k] = (values[decisions.argmax(axis=1)] == test_factors[:, k]).mean()
    return out


def _costs(counts: Ints) -> Floats:
    """Price of a mistake on a row of each value, and on one of the rest, (2, values).

    "Balanced" weighs only the value itself, unless there are two: then one machine is fitted and both have a weight.
    """
    balanced = COST * counts.sum() / (len(counts) * counts)
    return np.stack([balanced, balanced[::-1] if len(counts) == 2 else np.full(len(counts), COST)])


@dataclass(frozen=True)
class _Latent:
    """One latent, laid out so that the rows that err against any line are counted by two binary searches.

    The rows that a line misjudges lie on one side of a threshold, so their number, sum and sum of squares are
    differences of running sums: of all rows by rank, and of the rows of each value of each factor by rank.
    """

    ordered: Floats  # (N,)
    running: Floats  # (3, N + 1) over all rows
    keys: Ints  # (K N,) value number * (N + 1) + rank, increasing
    within: Floats  # (3, K N + 1) in the order of the keys
    starts: Ints  # (V,) first key of each value of each factor
    sizes: Ints  # (V,)
    costs: Floats  # (2, V)

    @classmethod
    def of(cls, codes: Floats, labels: Ints, firsts: Ints, costs: Floats) -> "_Latent":
        """Codes (N,), labels (K, N) from 0 for each factor, whose first values have the numbers `firsts`."""
        order = np.argsort(codes)
        rows = len(order)
        values = labels[:, order] + firsts[:, None]
        ranks = np.argsort(values.astype(np.min_scalar_type(values.max())), axis=1, kind="stable")
        keys = np.take_along_axis(values, ranks, axis=1) * (rows + 1) + ranks
        ordered = codes[order]
        sizes = np.bincount(values.ravel(), minlength=costs.shape[1])
        starts = np.cumsum(sizes) - sizes
        return cls(ordered, _running(ordered), keys.ravel(), _running(ordered[ranks.ravel()]), starts, sizes, costs)

    def beyond(self, threshold: Floats, *, above: NDArray[np.bool_], rest: bool) -> Floats:
        """Count, sum and sum of squares, (3, V), of the rows on one side of each value's threshold.

        Of the rows of the value itself or of the `rest`.
        """
        rank = np.searchsorted(self.ordered, threshold)
        numbers = np.arange(len(threshold))
        at = np.searchsorted(self.keys, numbers * (len(self.ordered) + 1) + rank)
        below = self.within[:, at] - self.within[:, self.starts]
        total = self.within[:, self.starts + self.sizes] - self.within[:, self.starts]
        if rest:
            below, total = self.running[:, rank] - below, self.running[:, -1:] - total
        return np.where(above, total - below, below)

    def loss(self, weights: Floats, offsets: Floats) -> tuple[Floats, Floats, Floats]:
        """Loss (V,), gradient (2, V) and curvature (3, V): by weight twice, by both, by offset twice."""
        falling = np.signbit(weights)
        value = (weights**2 + offsets**2) / 2
        gradient = np.stack([weights, offsets])
        curvature = np.outer([1.0, 0.0, 1.0], np.ones(len(weights)))
        for sign, rest, cost in ((1.0, False, self.costs[0]), (-1.0, True, self.costs[1])):
            margin = sign - offsets  # the row errs if sign * weight * code < sign * margin
            with np.errstate(divide="ignore", invalid="ignore"):  # no weight: all rows err or none does
                threshold = margin / weights
            count, first, second = self.beyond(threshold, above=falling ^ rest, rest=rest)
            value += cost * (count * margin**2 - 2 * margin * weights * first + weights**2 * second)
            gradient += 2 * cost * np.stack([weights * second - margin * first, weights * first - margin * count])
            curvature += 2 * cost * np.stack([second, first, count])
        return value, gradient, curvature


def _running(values: Floats) -> Floats:
    """Running count, sum and sum of squares, from 0, (3, n + 1)."""
    out = np.zeros((3, len(values) + 1))
    out[0] = np.arange(len(values) + 1)
    np.cumsum(values, out=out[1, 1:])
    np.cumsum(values**2, out=out[2, 1:])
    return out


def _fit(latent: _Latent) -> tuple[Floats, Floats]:
    """Weight and offset of every machine, (V,) each: damped Newton steps on a convex, piecewise quadratic loss."""
    at = np.zeros((2, len(latent.sizes)))
    value, gradient, curvature = latent.loss(*at)
    damping = np.ones(len(value))
    for _ in range(STEPS):
        ww, wb, bb = curvature
        step = np.stack([bb * gradient[0] - wb * gradient[1], ww * gradient[1] - wb * gradient[0]]) / (ww * bb - wb**2)
        if ((step * gradient).sum(axis=0) <= 1e-12 * value).all():
            at = at - step  # for the digits that the loss no longer shows, and latents of tiny scale need
            break
        tried = at - damping * step
        new_value, new_gradient, new_curvature = latent.loss(*tried)
        better = new_value <= value
        at, value = np.where(better, tried, at), np.where(better, new_value, value)
        gradient = np.where(better, new_gradient, gradient)
        curvature = np.where(better, new_curvature, curvature)
        damping = np.where(better, 1.0, damping / 2)
    return at[0], at[1]
