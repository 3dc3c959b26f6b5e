"""Scores from the mutual information of single latents with single factors."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._discretization import Counted, bin_labels, count_information, factor_labels
from vlae.metrics._validation import Array, Factors, check_rows, live


def discretize(codes: Array | Factors, bins: int) -> NDArray[np.int64]:
    """Bin number of each code or factor, (N, D) in 0..bins-1, by the edges of `binning.bin_labels`; errors as there."""
    return bin_labels(codes, bins).values.T.astype(np.int64)


def entropy(values: NDArray[np.integer]) -> float:
    """Entropy in nats of the empirical distribution of `values` (N,)."""
    counts = np.unique(values, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def mutual_information(codes: Array, factors: Factors, *, bins: int = 20) -> NDArray[np.float64]:
    """I(z_j; v_k) in nats by counting, (D, K), each latent cut into `bins` bins of equal width.

    The binning is that of Locatello et al. 2019: the edges of `numpy.histogram` on the dtype of the codes.

    Args:
        codes: (N, D) float, posterior means.
        factors: (N, K) int.
        bins: per latent, at least 1; may be more than N.

    Raises:
        ValueError: shapes that do not fit, no latents, codes that are not finite or whose range overflows
            their dtype, or fewer than one bin.

    Returns:
        In [0, min(log bins, H(v_k))]; exactly 0 for a constant latent or factor, and for less than 1e-12.
    """
    return _counted(codes, factors, bins).information


def _counted(codes: Array, factors: Factors, bins: int) -> Counted:
    check_rows(codes, factors)
    if not codes.shape[1]:
        raise ValueError(f"need at least one latent, got codes {codes.shape}")
    return count_information(bin_labels(codes, bins), factor_labels(factors))


def _counted_varying(codes: Array, factors: Factors, bins: int) -> Counted:
    """Of the factors that take more than one value; about the others there is nothing to know."""
    check_rows(codes, factors)
    return _counted(codes, factors[:, factors.max(axis=0) > factors.min(axis=0)], bins)


def _gap(information: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest minus second largest along the last axis; the second is 0 where there is only one."""
    ordered = np.sort(information, axis=-1)
    return ordered[..., -1] - (ordered[..., -2] if information.shape[-1] > 1 else 0.0)


def mig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Mutual information gap: is each factor held by one latent?

    Mean over the factors of `factor_gaps` (Chen et al. 2018, eq. 6, with the binning of Locatello et al. 2019).

    Args:
        codes: (N, D) float, posterior means. Of a single latent the gap is to 0.
        factors: (N, K) int; factors with one value are left out.
        bins: per latent. A perfect code stays below 1 where a factor has more values than bins.

    Raises:
        ValueError: as `mutual_information`.

    Returns:
        In [0, 1], higher is better; NaN if no factor varies.
    """
    gaps = factor_gaps(codes, factors, bins=bins)
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.mean()) if len(gaps) else float("nan")


def factor_gaps(codes: Array, factors: Factors, *, bins: int = 20) -> NDArray[np.float64]:
    """Gap between the two latents that know most of each factor, over its entropy: (K,), in [0, 1].

    The mean of some of them is the MIG of papers that leave factors out, as Chen et al. 2018 do with dSprites' shape.
    Arguments and errors as for `mig_score`; NaN for a factor with one value.
    """
    information, _, entropies = _counted(codes, factors, bins)
    with np.errstate(invalid="ignore"):
        return _gap(information.T) / entropies


def mig_sup_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """The gap seen from the latents: does each active latent hold one factor? (Li et al. 2020)

    Mean over the latents with a variance above 0.01 of the gap between the two factors that it knows
    most of, each as a share of the factor's entropy. Arguments and errors as for `mig_score`.

    Returns:
        In [0, 1], higher is better; 0 if no latent is active; NaN if fewer than two factors vary.
    """
    information, _, entropies = _counted_varying(codes, factors, bins)
    if len(entropies) < 2:
        return float("nan")
    active = live(codes)
    return float(_gap(information[active] / entropies).mean()) if active.any() else 0.0


def modularity_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Does each latent tell of one factor only? (Ridgeway & Mozer 2018, section 3)

    Mean over the latents of 1 - (sum_k I_jk^2 - max_k I_jk^2) / (max_k I_jk^2 (K - 1)), 0 for a latent that
    tells nothing. Arguments and errors as for `mig_score`.

    Returns:
        In [0, 1], higher is better, but not comparable between codes with more and fewer dead latents: a
        perfect code with as many constant latents has half, and pure noise about .7, its counts being
        uneven by chance. NaN if fewer than two factors vary.
    """
    squares = _counted_varying(codes, factors, bins).information ** 2
    factors_left = squares.shape[1]
    if factors_left < 2:
        return float("nan")
    largest = squares.max(axis=1)
    told = largest > 0
    rest = (squares.sum(axis=1) - largest)[told] / (largest[told] * (factors_left - 1))
    return float((1 - rest).sum() / len(squares))


def dcimig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """How much of the factors is held by latents of their own? (DCIMIG, or 3CharM: Sepliarskaia et al. 2019)

    A latent stands for the factor that it tells most of, by the gap to the next factor; a factor counts the
    best of its latents: sum_k max_j gap_j / sum_k H(v_k). Arguments and errors as for `mig_score`.

    Returns:
        In [0, 1], higher is better; duplicated and dead latents cost nothing. NaN if fewer than two factors vary.
    """
    information, _, entropies = _counted_varying(codes, factors, bins)
    if len(entropies) < 2:
        return float("nan")
    held = np.zeros(len(entropies))
    np.maximum.at(held, information.argmax(axis=1), _gap(information))
    return float(held.sum() / entropies.sum())


def jemmig_score(codes: Array, factors: Factors, *, bins: int = 20) -> float:
    """Is each factor held by one latent, and does that latent hold nothing else? (Do & Tran 2020)

    Joint entropy minus mutual information gap, in its normalized form where higher is better: mean over the
    factors of 1 - (H(v_k, z_j*) - I_(1)k + I_(2)k) / (H(v_k) + log bins), j* the latent that tells most of v_k.
    Of latents that tell equally much, the one with the smallest joint entropy, so that their order does not
    matter. Arguments and errors as for `mig_score`.

    Returns:
        In [0, 1]; 1 = every value of a factor has a bin of its latent to itself. A constant code does not get 0
        but log bins / (H(v_k) + log bins), for it adds nothing to the joint entropy: beside the other scores
        only. NaN if no factor varies.
    """
    information, latents, entropies = _counted_varying(codes, factors, bins)
    if not len(entropies):
        return float("nan")
    joint = latents[:, None] + entropies - information
    best = information > information.max(axis=0) - 1e-9  # the same but for rounding
    smallest = np.where(best, joint, np.inf).min(axis=0)
    return float((1 - (smallest - _gap(information.T)) / (entropies + np.log(bins))).mean())
