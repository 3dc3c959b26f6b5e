"""The interventional robustness score: does a latent stand still while all factors but its own change?"""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array, Factors, check_rows, varies
from vlae.metrics.information import discretize

Floats = NDArray[np.float64]


def irs_score(codes: Array, factors: Factors, *, bins: int = 20, quantile: float = 0.99) -> float:
    """Share of each latent's range that one factor accounts for (Suter et al. 2019).

    For a factor in `bins` bins of equal width, the deviation of a latent is the `quantile` of its distance to the mean
    of its bin, averaged over the bins that occur, each alike. A latent scores 1 less that deviation over its greatest
    distance to its mean anywhere, for the factor that serves it best; latents are weighted by that greatest distance.
    As in Locatello et al. 2019, who take the quantile in place of the paper's maximum. It is computed in float64.

    Args:
        codes: (N, D) float, posterior means.
        factors: (N, K) int; factors with one value are left out.
        bins: per factor; only where a factor has more values do several share a bin.
        quantile: of the distances in a bin, 1 for the paper's maximum.

    Returns:
        At most 1, higher is better; 0 if every latent is constant; NaN if no factor varies. Useless codes are above 0:
        about .3 for Gaussian noise, more where few rows share a bin. Below 0 only where a latent is skewed one way in
        some bins and the other way in others. A large latent outweighs all others, and a factor that no latent holds,
        or that several do, costs nothing.

    Raises:
        ValueError: shapes that do not fit, codes that are not finite, bins below 1 or a quantile outside [0, 1].
    """
    check_rows(codes, factors)
    if bins < 1 or not 0 <= quantile <= 1:
        raise ValueError(f"need at least one bin and a quantile in [0, 1], got {bins}, {quantile}")
    varying = factors[:, varies(factors)]
    if not varying.shape[1]:
        return float("nan")
    live = np.ascontiguousarray(codes[:, np.ptp(codes, axis=0) > 0].T, np.float64)
    if not len(live):
        return 0.0
    reach = np.abs(live - live.mean(axis=1, keepdims=True)).max(axis=1)
    binned = discretize(varying.astype(np.float64), bins)
    deviation = np.stack([_deviation(live, column, quantile) for column in binned.T])
    scores = 1 - deviation.min(axis=0) / reach
    return float(np.average(scores, weights=reach))


def _deviation(latents: Floats, binned: NDArray[np.int64], quantile: float) -> Floats:
    """Mean over the bins of the quantile of each latent's distance to its mean there: (D, N), (N,) -> (D,)."""
    order = np.argsort(binned, kind="stable")
    ends = np.flatnonzero(np.diff(binned[order])) + 1
    groups = np.split(latents[:, order], ends, axis=1)
    far = [np.abs(group - group.mean(axis=1, keepdims=True)) for group in groups]
    mean: Floats = np.mean([np.quantile(distances, quantile, axis=1) for distances in far], axis=0)
    return mean
