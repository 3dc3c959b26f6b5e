"""Unsupervised disentanglement ranking: do models trained from other seeds find the same latents?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vlae.metrics._validation import Array, check_codes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def udr_score(codes_of_models: Sequence[Array], *, active: Sequence[Mask] | None = None) -> Floats:
    """UDR_S of each model (Duan et al. 2020, section 4), with Spearman's correlation: needs no factors.

    For two models let R(a, b) be the absolute rank correlation of their active latents. Latents that map one to
    one have one large entry in their row and column: the score of the pair is the mean, over the active latents
    of both, of the largest entry squared over the sum of the entries. A model's score is the median over the
    others. It ranks settings of one kind of model; a code that the seeds share is not always a disentangled one.

    Args:
        codes_of_models: M >= 2 arrays (N, D_m) float, posterior means of the SAME images in the same order.
        active: M masks (D_m,) bool of the informative latents; the paper takes those with a KL above 0.01 nats.
            Left out: those whose standard deviation exceeds a twentieth of the model's largest, which suits
            codes of one prior. Constant latents are never active.

    Raises:
        ValueError: fewer than two models, codes that are not finite matrices of as many rows, masks that do not fit.

    Returns:
        (M,) float64 in [0, 1], higher is better; a pair of which one has no active latents scores 0.
        Entries of independent latents are about sqrt(2 / (pi N)) by chance, not 0.
    """
    if len(codes_of_models) < 2:
        raise ValueError(f"need at least 2 models, got {len(codes_of_models)}")
    for codes in codes_of_models:
        check_codes(codes)
    shapes = [codes.shape for codes in codes_of_models]
    if len({rows for rows, _ in shapes}) > 1:
        raise ValueError(f"models must have codes of the same images, got {shapes}")
    masks = [_active(codes) for codes in codes_of_models] if active is None else list(active)
    if [mask.shape for mask in masks] != [shape[1:] for shape in shapes] or any(mask.dtype != bool for mask in masks):
        found = [(mask.shape, str(mask.dtype)) for mask in masks]
        raise ValueError(f"active must be a bool mask (D_m,) for each of the codes {shapes}, got {found}")
    ranks = [_standard_ranks(codes[:, mask]) for codes, mask in zip(codes_of_models, masks, strict=True)]
    return _medians(ranks)


def _active(codes: Array) -> Mask:
    deviations = codes.astype(np.float64).std(axis=0)
    return np.asarray(deviations > deviations.max(initial=0) / 20)


def _standard_ranks(codes: Array) -> Floats:
    """Ranks of the latents that vary, (N, V), each centerd and of length 1."""
    ranks = rankdata(codes[:, codes.max(axis=0) > codes.min(axis=0)], axis=0)
    ranks -= ranks.mean(axis=0)
    return np.asarray(ranks / np.linalg.norm(ranks, axis=0))


def _medians(ranks: list[Floats]) -> Floats:
    models = len(ranks)
    pairs = np.zeros((models, models))
    for first in range(models):
        for second in range(first):
            pairs[first, second] = pairs[second, first] = _one_to_one(ranks[first].T @ ranks[second])
    others = pairs[~np.eye(models, dtype=bool)].reshape(models, models - 1)
    return np.asarray(np.median(others, axis=1))


def _one_to_one(correlations: Floats) -> float:
    """Score of a pair from its correlations (A, B), signs included; rounding above 1 is cut off."""
    matrix = np.minimum(np.abs(correlations), 1)
    if not matrix.size:
        return 0.0
    strengths = [
        np.divide(matrix.max(axis) ** 2, matrix.sum(axis), out=np.zeros(matrix.shape[1 - axis]), where=matrix.any(axis))
        for axis in (0, 1)
    ]
    return float(np.concatenate(strengths).mean())
