"""The interventional robustness score of Suter et al. 2019 as Locatello et al. 2019 compute it, value by value."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference.representations import Representation

BINS, QUANTILE = 20, 0.99


def irs(codes: NDArray[np.floating], factors: NDArray[np.int64]) -> float:
    """Return the mean over latents of 1 - deviation / greatest deviation, weighted by the latter; 0 if constant."""
    latents = codes[:, codes.max(axis=0) > codes.min(axis=0)].astype(np.float64)
    if not latents.shape[1]:
        return 0.0
    greatest = np.abs(latents - latents.mean(axis=0)).max(axis=0)
    scores = []
    for latent, reach in zip(latents.T, greatest, strict=True):
        by_factor = []
        for factor in factors.T:
            binned = np.digitize(factor, np.histogram(factor, BINS)[1][:-1])
            deviations = []
            for value in np.unique(binned):
                group = latent[binned == value]
                deviations.append(np.percentile(np.abs(group - group.mean()), 100 * QUANTILE))
            by_factor.append(1 - np.mean(deviations) / reach)
        scores.append(max(by_factor))
    return float(np.average(scores, weights=greatest))


def golden(data: Representation) -> dict[str, float]:
    """Return the metric of the train rows and of the test rows."""
    return {
        "train": irs(data.train_codes, data.train_factors),
        "test": irs(data.test_codes, data.test_factors),
    }
