"""Interventional robustness score: is a latent constant while all factors but its own change?"""

import numpy as np

from vlae.metrics._discretization import discretize
from vlae.metrics._validation import Array, Factors, check_rows, varies


def irs_score(codes: Array, factors: Factors, *, bins: int = 20, quantile: float = 0.99) -> float:
    """Compute the interventional robustness score (IRS): the fraction of a latent's range that one factor explains.

    For factor k in bins b, the deviation of latent j is d_jk = mean_b quantile_(rows in b) |z_j - mean_b z_j|, and
    the score is the mean over the latents of 1 - min_k d_jk / max |z_j - mean z_j|, weighted by the denominators.
    Computed in float64.

    Args:
        codes: Posterior means (N, D) float.
        factors: Factors (N, K) int; factors with one value are left out.
        bins: Number of bins per factor; only a factor with more values has several values in a bin.
        quantile: Quantile of the distances in a bin, in [0, 1]; 1 is the maximum of Suter et al., .99 the choice of
            Locatello et al.

    Returns:
        At most 1, higher is better; 0 if every latent is constant; NaN if no factor varies. Useless codes are above
        0: about .3 for Gaussian noise, more where bins have few rows. Below 0 only where a latent is skewed to
        opposite sides in different bins. Large latents outweigh all others, and a factor that no latent or several
        latents hold changes nothing.

    Raises:
        ValueError: The shapes do not fit, codes are not finite, or bins or the quantile are out of range.

    References:
        Suter et al., "Robustly Disentangled Causal Mechanisms: Validating Deep Representations for Interventional
        Robustness", ICML 2019, arXiv:1811.00007; Locatello et al., ICML 2019, arXiv:1811.12359.

    Example:
        >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> irs_score(factors.astype(float), factors)
        1.0
    """
    check_rows(codes, factors, min_latents=0)
    if bins < 1 or not 0 <= quantile <= 1:
        raise ValueError(f"bins, quantile: got {bins}, {quantile}. Pass bins > 0 and a quantile in [0, 1].")
    varying = factors[:, varies(factors)]
    if not varying.shape[1]:
        return float("nan")
    latents = np.ascontiguousarray(codes[:, np.ptp(codes, axis=0) > 0].T, np.float64)
    if not len(latents):
        return 0.0
    reach = np.abs(latents - latents.mean(axis=1, keepdims=True)).max(axis=1)
    deviations = []
    for binned in discretize(varying.astype(np.float64), bins).values:
        ends = np.flatnonzero(np.diff(np.sort(binned))) + 1
        groups = np.split(latents[:, np.argsort(binned, kind="stable")], ends, axis=1)
        distances = [np.abs(group - group.mean(axis=1, keepdims=True)) for group in groups]
        deviations.append(np.mean([np.quantile(each, quantile, axis=1) for each in distances], axis=0))
    return float(np.average(1 - np.min(deviations, axis=0) / reach, weights=reach))
