"""Beliefs about a factor's value, formed from some rows' posteriors and asked about other rows' samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Array

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

_WIDENINGS = (0.0, 0.2, 0.5)  # prior standard deviations, added to every posterior's own
_BANDWIDTHS = (0.1, 0.4)  # standard deviations within a class, along the discriminants
_RANKS = 2
_BLOCK = 32  # rows at a time: a block of kernel values stays in the cache


@dataclass(frozen=True)
class Posteriors:
    """Rows of one rung: one draw, mean and log standard deviation of each posterior, all (N, D) float64."""

    samples: Floats
    means: Floats
    log_sigmas: Floats

    def rows(self, chosen: NDArray[np.bool_]) -> "Posteriors":
        return Posteriors(self.samples[chosen], self.means[chosen], self.log_sigmas[chosen])


def posteriors(samples: Array, means: Array, log_sigmas: Array) -> Posteriors:
    """The three arrays as float64: differences of narrow posteriors cancel in less."""
    return Posteriors(*(np.asarray(part, np.float64) for part in (samples, means, log_sigmas)))


def prior_beliefs(train: Labels, classes: int, asked: Labels) -> Floats:
    """Frequency of the asked labels among `train` (n,), with one more of each class: never 0. (m,)."""
    return ((np.bincount(train, minlength=classes) + 1.0) / (len(train) + classes))[asked]


def mixture_beliefs(train: Posteriors, samples: Floats, onehot: NDArray[np.float32]) -> Floats:
    """Bayes' rule by q(z|v), the mixture of the posteriors with that value, at several widenings.

    Args:
        train: n rows.
        samples: (m, D) points to judge.
        onehot: (n, C) of the train rows; several factors may stand side by side.

    Returns:
        (W, m, C) probabilities; the values of one factor sum to 1.
    """
    out = np.empty((len(_WIDENINGS), len(samples), onehot.shape[1]))
    for index, widening in enumerate(_WIDENINGS):
        precision = 1 / (np.exp(2 * train.log_sigmas) + widening**2)
        slope = (train.means * precision).T
        offset = 0.5 * (np.log(precision) - train.means**2 * precision).sum(1)
        for start in range(0, len(samples), _BLOCK):
            z = samples[start : start + _BLOCK]
            log_density = z @ slope - 0.5 * z**2 @ precision.T + offset
            kernel = np.exp((log_density - log_density.max(1, keepdims=True)).astype(np.float32))
            out[index, start : start + _BLOCK] = (kernel @ onehot) / kernel.sum(1, keepdims=True)
    return out


@dataclass(frozen=True)
class Discriminants:
    """Fisher's linear discriminants of one factor: axes (D, D), most telling first, of unit spread within a class."""

    axes: Floats
    center: Floats
    class_means: Floats
    share: Floats


def discriminants(samples: Floats, labels: Labels, classes: int) -> Discriminants:
    """Fit to samples (n, D) with labels (n,); class means are shrunk by what chance alone would spread them."""
    counts = np.bincount(labels, minlength=classes)
    onehot = np.eye(classes)[labels]
    means = onehot.T @ samples / np.maximum(counts, 1)[:, None]
    center = samples.mean(0)
    apart = np.where(counts[:, None] > 0, means - center, 0)
    rest = samples - means[labels]
    total = ((samples - center) ** 2).mean()
    within = rest.T @ rest / len(samples) + (1e-6 * total + 1e-12) * np.eye(samples.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    scatter = whiten @ (apart.T * counts) @ apart @ whiten.T / len(samples)
    found, vectors = np.linalg.eigh(scatter)
    axes = whiten.T @ vectors[:, ::-1]
    by_chance = (classes - 1) / len(samples) / np.maximum(found[::-1], 1e-12)
    return Discriminants(axes, center, apart @ axes * np.maximum(0, 1 - by_chance), (counts + 1) / (counts + 1).sum())


def gaussian_beliefs(fit: Discriminants, samples: Floats, asked: Labels) -> list[Floats]:
    """Belief in the asked labels if every class were Gaussian: along 1, 2 and all discriminants, (m,) each."""
    z = (samples - fit.center) @ fit.axes
    out = []
    for rank in sorted({1, min(_RANKS, z.shape[1]), z.shape[1]}):
        distance = z[:, None, :rank] - fit.class_means[None, :, :rank]
        log_belief = np.log(fit.share) - 0.5 * (distance**2).sum(2)
        belief = np.exp(log_belief - log_belief.max(1, keepdims=True))
        out.append(np.asarray(belief[np.arange(len(z)), asked] / belief.sum(1)))
    return out


def projected_beliefs(
    fit: Discriminants, train: Posteriors, onehot: NDArray[np.float32], samples: Floats, asked: Labels
) -> Floats:
    """Belief in the asked labels by the mixtures as they look along the first one and two discriminants.

    Kernels around the posterior means have the mean variance that the posteriors show there, widened; a
    sample with no neighbor at all falls back on the classes' shares.

    Returns:
        (ranks * bandwidths, m).
    """
    axes = fit.axes[:, :_RANKS]
    noise = np.exp(2 * train.log_sigmas).mean(0) @ axes**2
    points, sampled_posterior_means = ((part - fit.center) @ axes for part in (samples, train.means))
    points, sampled_posterior_means = points.T.astype(np.float32), sampled_posterior_means.T.astype(np.float32)
    bandwidths = [np.float32(-0.5) / (noise + width**2).astype(np.float32) for width in _BANDWIDTHS]
    share = fit.share.astype(np.float32)
    out = np.empty((len(points) * len(bandwidths), len(samples)))
    for start in range(0, len(samples), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squares = (points[:, rows, None] - sampled_posterior_means[:, None, :]) ** 2
        label = asked[rows]
        for index, scale in enumerate(bandwidths):
            log_kernel = np.zeros_like(squares[0])
            for rank, square in enumerate(squares):
                log_kernel += square * scale[rank]
                mass = np.exp(log_kernel) @ onehot + np.float32(1e-30) * share
                out[rank * len(bandwidths) + index, rows] = mass[np.arange(len(label)), label] / mass.sum(1)
    return out
