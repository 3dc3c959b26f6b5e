"""What each rung holds: information about the factors, as a whole block of latents."""

import numpy as np
from numpy.typing import NDArray

from vlae.metrics._label_likelihoods import (
    Floats,
    Labels,
    Posteriors,
    discriminants,
    gaussian_beliefs,
    mixture_beliefs,
    posteriors,
    prior_beliefs,
    projected_beliefs,
)
from vlae.metrics._validation import Array, Factors, check_rows, varies
from vlae.metrics.information import entropy

_FOLDS = 10
_STEPS = 100


def rung_information(samples: Array, means: Array, log_sigmas: Array, factors: Factors) -> NDArray[np.float64]:
    """Share I(z; v_k) / H(v_k) of each factor that one rung's posterior samples tell, (K,).

    `rung_mutual_information` over the same estimate of the entropy.

    Args:
        samples: (N, D) float, one draw of each posterior.
        means: (N, D) float, of the posteriors.
        log_sigmas: (N, D) float, of the posteriors.
        factors: (N, K) int.

    Returns:
        Each in [0, 1]; NaN for a factor with one value.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    told, entropies = _information_and_entropy(samples, means, log_sigmas, factors)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(told / entropies)


def rung_mutual_information(samples: Array, means: Array, log_sigmas: Array, factors: Factors) -> NDArray[np.float64]:
    """I(z; v_k) in nats between one rung as a block and each factor, by held-out prediction, (K,).

    Every sample is judged by log q(v|z) - log q(v), with q(v|z) formed from other images only (ten folds):
    a posterior would always recognize its own sample. That is the score of a classifier on held-out data, so
    in expectation a lower bound of the information (Barber, Agakov 2003), and blocks of several latents need
    no binning. The classifier mixes several: Bayes' rule by the exact posteriors, q(z|v) being a mixture of
    one Gaussian per image, at three widenings; the same along Fisher's first two discriminants of the factor,
    because in several dimensions neighbors are rare; Gaussian classes; and the factor's frequencies. The
    weights maximize the held-out likelihood of one half of the images and are used on the other.

    For Gaussian rungs of 1 to 4 latents, 3000 images and ten values it lies .002 to .01 nats below the exact
    value: within 2 % from .33 nats on, 5 % at .12, and a fifth of .02.

    Samples, not means: a collapsed rung's means can still separate what its samples cannot.

    Args:
        samples: (N, D) float, one draw of each posterior.
        means: (N, D) float, of the posteriors.
        log_sigmas: (N, D) float, of the posteriors.
        factors: (N, K) int.

    Returns:
        Each in [0, H(v_k)], with Miller's correction of H; NaN for a factor with one value. The same arrays
        give the same answer: the folds are drawn from a fixed seed.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    return _information_and_entropy(samples, means, log_sigmas, factors)[0]


def _information_and_entropy(
    samples: Array, means: Array, log_sigmas: Array, factors: Factors
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats told of each factor and its entropy, (K,) each; NaN and 0 for a factor with one value."""
    check_rows(samples, factors)
    if means.shape != samples.shape or log_sigmas.shape != samples.shape:
        raise ValueError(f"samples, means, log_sigmas must agree: {samples.shape}, {means.shape}, {log_sigmas.shape}")
    if not (np.isfinite(means).all() and np.isfinite(log_sigmas).all()):
        raise ValueError("means or log_sigmas hold values that are not finite")
    told, entropies = np.full(factors.shape[1], np.nan), np.zeros(factors.shape[1])
    varying = np.flatnonzero(varies(factors)).tolist()
    labels = [np.unique(factors[:, k], return_inverse=True)[1] for k in varying]
    entropies[varying], told[varying] = [_corrected_entropy(values) for values in labels], 0
    if varying and samples.shape[1]:
        # A permutation: folds by position would tear a factor that cycles along the rows.
        fold = np.random.default_rng(0).permutation(len(samples)) % _FOLDS
        beliefs = _held_out_beliefs(posteriors(samples, means, log_sigmas), labels, fold)
        scores = np.array([_stacked_score(belief, fold % 2 == 0) for belief in beliefs])
        told[varying] = np.clip(entropies[varying] + scores, 0, entropies[varying])
    return told, entropies


def _corrected_entropy(values: Labels) -> float:
    """Entropy in nats with the correction of Miller 1955: a sample looks less even than its source."""
    size = int(values.max()) + 1
    return min(entropy(values) + (size - 1) / (2 * len(values)), float(np.log(size)))


def _held_out_beliefs(rung: Posteriors, labels: list[Labels], fold: NDArray[np.int64]) -> list[Floats]:
    """Probability that each expert, fitted without the row's fold, gives to the row's label: (N, E) per factor."""
    sizes = [int(values.max()) + 1 for values in labels]
    onehots = [np.eye(size, dtype=np.float32)[values] for size, values in zip(sizes, labels, strict=True)]
    starts = np.cumsum([0, *sizes[:-1]])
    parts: list[list[Floats]] = [[] for _ in labels]
    order = []
    for current in np.unique(fold):
        test, train = fold == current, fold != current
        known, asked_samples = rung.rows(train), rung.samples[test]
        order.append(np.flatnonzero(test))
        mixed = mixture_beliefs(known, asked_samples, np.concatenate(onehots, axis=1)[train])
        for k, values in enumerate(labels):
            asked, seen = values[test], values[train]
            fit = discriminants(known.samples, seen, sizes[k])
            experts = [
                prior_beliefs(seen, sizes[k], asked),
                *mixed[:, np.arange(len(asked)), starts[k] + asked],
                *gaussian_beliefs(fit, asked_samples, asked),
                *projected_beliefs(fit, known, onehots[k][train], asked_samples, asked),
            ]
            parts[k].append(np.stack(experts, axis=1))
    back = np.argsort(np.concatenate(order))
    return [np.concatenate(part)[back] for part in parts]


def _stacked_score(beliefs: Floats, half: NDArray[np.bool_]) -> float:
    """Mean log probability, nats, of the labels: experts (N, E) weighted as suits the half that is not scored."""
    total = 0.0
    for scored in (half, ~half):
        total += float(np.log(beliefs[scored] @ _expert_weights(beliefs[~scored])).sum())
    return total / len(beliefs)


def _expert_weights(beliefs: Floats) -> Floats:
    """Weights (E,) of the most likely mixture of experts, by EM, each kept above 0 by one image's worth."""
    count, experts = beliefs.shape
    weights = np.full(experts, 1 / experts)
    for _ in range(_STEPS):
        weights = (weights * ((1 / (beliefs @ weights)) @ beliefs) + 1) / (count + experts)
    return weights
