"""Likelihoods of factor values, q(v|z), fitted to the posteriors of some rows and evaluated at samples of others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._validation import Floats, Mask

Labels = NDArray[np.int64]
OneHot = NDArray[np.float32]

_WIDENINGS = (0.0, 0.2, 0.5)  # prior standard deviations, added to every posterior's own
_BANDWIDTHS = (0.1, 0.4)  # standard deviations within a class, along the discriminants
_RANKS = 2
_ROWS_PER_BLOCK = 32  # because a block of kernel values then stays in the processor's cache


@dataclass(frozen=True)
class Posteriors:
    """Posteriors of one rung, float64 because differences of narrow posteriors cancel in less.

    Attributes:
        samples: (N, D), one sample of each posterior.
        means: (N, D).
        log_sigmas: (N, D), logarithms of the standard deviations.
    """

    samples: Floats
    means: Floats
    log_sigmas: Floats

    def rows(self, mask: Mask) -> "Posteriors":
        return Posteriors(self.samples[mask], self.means[mask], self.log_sigmas[mask])


def prior_likelihoods(train_labels: Labels, classes: int, labels: Labels) -> Floats:
    """Return the train frequencies of the labels, (m,), with one row added per class so that none is 0."""
    return ((np.bincount(train_labels, minlength=classes) + 1.0) / (len(train_labels) + classes))[labels]


def mixture_likelihoods(train: Posteriors, samples: Floats, onehot: OneHot) -> Floats:
    """Apply Bayes' rule to q(z|v), the mixture of the posteriors with that value, at several widenings.

    Args:
        train: Posteriors of n rows.
        samples: Samples (m, D).
        onehot: One-hot values (n, C) of the train rows; several factors may be side by side.

    Returns:
        Probabilities (W, m, C); those of the values of one factor sum to 1.
    """
    likelihoods = np.empty((len(_WIDENINGS), len(samples), onehot.shape[1]))
    for index, widening in enumerate(_WIDENINGS):
        precision = 1 / (np.exp(2 * train.log_sigmas) + widening**2)
        slope = (train.means * precision).T
        offset = 0.5 * (np.log(precision) - train.means**2 * precision).sum(1)
        for start in range(0, len(samples), _ROWS_PER_BLOCK):
            z = samples[start : start + _ROWS_PER_BLOCK]
            log_density = z @ slope - 0.5 * z**2 @ precision.T + offset
            kernel = np.exp((log_density - log_density.max(1, keepdims=True)).astype(np.float32))
            likelihoods[index, start : start + len(z)] = (kernel @ onehot) / kernel.sum(1, keepdims=True)
    return likelihoods


@dataclass(frozen=True)
class Discriminants:
    """Fisher's linear discriminants of one factor.

    Attributes:
        axes: (D, D), the most discriminating first, of unit standard deviation within a class.
        center: (D,), mean of the samples.
        class_means: (C, D), along the axes, shrunk by the spread that chance alone would give.
        class_frequencies: (C,).
    """

    axes: Floats
    center: Floats
    class_means: Floats
    class_frequencies: Floats


def fit_discriminants(samples: Floats, labels: Labels, classes: int) -> Discriminants:
    """Return the discriminants of samples (n, D) with labels (n,)."""
    counts = np.bincount(labels, minlength=classes)
    onehot = np.eye(classes)[labels]
    means = onehot.T @ samples / np.maximum(counts, 1)[:, None]
    center = samples.mean(0)
    centered_means = np.where(counts[:, None] > 0, means - center, 0)
    residuals = samples - means[labels]
    total = ((samples - center) ** 2).mean()
    within = residuals.T @ residuals / len(samples) + (1e-6 * total + 1e-12) * np.eye(samples.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    between = whiten @ (centered_means.T * counts) @ centered_means @ whiten.T / len(samples)
    eigenvalues, vectors = np.linalg.eigh(between)
    axes = whiten.T @ vectors[:, ::-1]
    by_chance = (classes - 1) / len(samples) / np.maximum(eigenvalues[::-1], 1e-12)
    class_means = centered_means @ axes * np.maximum(0, 1 - by_chance)
    return Discriminants(axes, center, class_means, (counts + 1) / (counts + 1).sum())


def gaussian_likelihoods(fit: Discriminants, samples: Floats, labels: Labels) -> list[Floats]:
    """Return the likelihoods of the labels, (m,) each, for Gaussian classes along 1, 2 and all discriminants."""
    z = (samples - fit.center) @ fit.axes
    likelihoods = []
    for rank in sorted({1, min(_RANKS, z.shape[1]), z.shape[1]}):
        distance = z[:, None, :rank] - fit.class_means[None, :, :rank]
        logits = np.log(fit.class_frequencies) - 0.5 * (distance**2).sum(2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        likelihoods.append(np.asarray(weights[np.arange(len(z)), labels] / weights.sum(1)))
    return likelihoods


def projected_likelihoods(
    fit: Discriminants, train: Posteriors, onehot: OneHot, samples: Floats, labels: Labels
) -> Floats:
    """Apply Bayes' rule to the mixtures projected on the first and the first two discriminants.

    Kernels around the posterior means have the mean variance of the posteriors along the discriminants, widened. A
    sample without a neighbor gets the frequencies of the classes.

    Args:
        fit: Discriminants of the train rows.
        train: Posteriors of n rows.
        onehot: One-hot values (n, C) of the train rows.
        samples: Samples (m, D).
        labels: Labels (m,) of the samples.

    Returns:
        Likelihoods of the labels, (ranks * bandwidths, m).
    """
    axes = fit.axes[:, :_RANKS]
    noise = np.exp(2 * train.log_sigmas).mean(0) @ axes**2
    points, centers = (((z - fit.center) @ axes).T.astype(np.float32) for z in (samples, train.means))
    scales = [np.float32(-0.5) / (noise + width**2).astype(np.float32) for width in _BANDWIDTHS]
    frequencies = fit.class_frequencies.astype(np.float32)
    likelihoods = np.empty((len(points) * len(scales), len(samples)))
    for start in range(0, len(samples), _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        squares = (points[:, rows, None] - centers[:, None, :]) ** 2
        block = labels[rows]
        for index, scale in enumerate(scales):
            log_kernel = np.zeros_like(squares[0])
            for rank, square in enumerate(squares):
                log_kernel += square * scale[rank]
                mass = np.exp(log_kernel) @ onehot + np.float32(1e-30) * frequencies
                likelihoods[rank * len(scales) + index, rows] = mass[np.arange(len(block)), block] / mass.sum(1)
    return likelihoods
