"""Unsupervised disentanglement ranking: do models trained with other seeds learn the same latents?"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from vlae.metrics._validation import Array, Floats, Mask, check_codes, varies

_ACTIVE_STD_DIVISOR = 20  # a default of this project's, for codes of one prior


def udr_score(model_codes: Sequence[Array], *, active: Sequence[Mask] | None = None) -> Floats:
    """Compute UDR_S of each model with Spearman's correlation; needs no factors.

    For two models let R (A, B) be the absolute rank correlations of their active latents. Latents that map one to one
    have one large entry in their row and column: the score of the pair is the mean, over the active latents of both
    models, of the largest entry squared over the sum of the entries. The score of a model is the median over the
    others. It ranks settings of one kind of model; a code that the seeds share is not always disentangled.

    Args:
        model_codes: Posterior means of M >= 2 models, arrays (N, D_m) float, of the SAME images in the same order.
        active: Masks (D_m,) of the active latents of the M models; the paper takes a mean KL above
            `SONDERBY_ACTIVE_KL`. By default those whose standard deviation exceeds a twentieth of the model's
            largest, which suits codes of one prior. Constant latents are always inactive.

    Returns:
        (M,) float64 in [0, 1], higher is better; a pair with a model without active latents scores 0. Entries of
        independent latents are about sqrt(2 / (pi N)) by chance, not 0.

    Raises:
        ValueError: There are fewer than two models, codes are not finite matrices of as many rows, or masks do not
            fit.

    References:
        Duan et al., "Unsupervised Model Selection for Variational Disentangled Representation Learning", ICLR 2020,
        section 4, arXiv:1905.12614.

    Example:
        >>> codes = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> udr_score([codes, -2 * codes[:, ::-1]]).round(6)
        array([1., 1.])
    """
    if len(model_codes) < 2:
        raise ValueError(f"model_codes: got {len(model_codes)} models. Pass at least 2.")
    for codes in model_codes:
        check_codes(codes)
    shapes = [codes.shape for codes in model_codes]
    if len({rows for rows, _ in shapes}) > 1:
        raise ValueError(f"model_codes: got shapes {shapes}. Pass codes of the same images.")
    if active is None:
        deviations = [codes.astype(np.float64).std(axis=0) for codes in model_codes]
        active = [each > each.max(initial=0) / _ACTIVE_STD_DIVISOR for each in deviations]
    if [mask.shape for mask in active] != [shape[1:] for shape in shapes] or any(mask.dtype != bool for mask in active):
        masks = [(mask.shape, str(mask.dtype)) for mask in active]
        raise ValueError(f"active: got {masks} for codes {shapes}. Pass a bool mask (D_m,) per model.")
    ranks = [_standardized_ranks(codes[:, mask]) for codes, mask in zip(model_codes, active, strict=True)]
    pairs = np.zeros((len(ranks), len(ranks)))
    for first in range(len(ranks)):
        for second in range(first):
            pairs[first, second] = pairs[second, first] = _pair_score(ranks[first].T @ ranks[second])
    others = pairs[~np.eye(len(ranks), dtype=bool)].reshape(len(ranks), len(ranks) - 1)
    return np.asarray(np.median(others, axis=1))


def _standardized_ranks(codes: Array) -> Floats:
    """Return the ranks of the latents that vary, (N, V), each centered and of length 1."""
    ranks = rankdata(codes[:, varies(codes)], axis=0)
    ranks -= ranks.mean(axis=0)
    return np.asarray(ranks / np.linalg.norm(ranks, axis=0))


def _pair_score(correlations: Floats) -> float:
    """Return the score of a pair of models from their signed correlations (A, B)."""
    matrix = np.minimum(np.abs(correlations), 1)  # rounding gives correlations above 1
    if not matrix.size:
        return 0.0
    strengths = [
        np.divide(matrix.max(axis) ** 2, matrix.sum(axis), out=np.zeros(matrix.shape[1 - axis]), where=matrix.any(axis))
        for axis in (0, 1)
    ]
    return float(np.concatenate(strengths).mean())
