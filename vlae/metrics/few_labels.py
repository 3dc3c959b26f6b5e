"""Accuracy of a code where labels are scarce."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vlae.metrics._validation import Array, check_split, varies

Labels = NDArray[np.integer]


def few_label_accuracy(
    train_codes: Array,
    train_labels: Labels,
    test_codes: Array,
    test_labels: Labels,
    *,
    count: int,
    seed: int,
    draws: int = 10,
) -> float:
    """Compute the mean test accuracy of logistic regressions fitted to a few labeled rows.

    Model M1 of Kingma et al. with scikit-learn's linear classifier (C = 1). Codes are standardized by all train rows,
    because unlabeled rows are free. The labeled rows are spread over the classes as evenly as their sizes allow; with
    fewer rows than classes some classes are never predicted.

    Args:
        train_codes: Codes (N, D) float.
        train_labels: Labels (N,) int.
        test_codes: Codes (M, D) float.
        test_labels: Labels (M,) int.
        count: Number of labeled rows, 2 to N.
        seed: Random seed for the choice of the rows.
        draws: Number of choices that the accuracy is averaged over, at least 1.

    Returns:
        In [0, 1], higher is better; about 1 / classes for a code without information, whatever the classes'
        frequencies, because the labeled rows are even; NaN for labels with one value in either set.

    Raises:
        ValueError: The shapes do not fit, there are no latents, codes are not finite, or count or draws are out of
            range.

    References:
        Kingma et al., "Semi-Supervised Learning with Deep Generative Models", NeurIPS 2014, arXiv:1406.5298.

    Example:
        >>> labels = np.arange(60) % 3
        >>> codes = np.eye(3)[labels]
        >>> few_label_accuracy(codes, labels, codes, labels, count=6, seed=0)
        1.0
    """
    if train_labels.ndim != 1 or test_labels.ndim != 1:
        raise ValueError(f"labels: got shapes {train_labels.shape}, {test_labels.shape}. Pass (N,) and (M,).")
    check_split(train_codes, train_labels[:, None], test_codes, test_labels[:, None])
    if not 2 <= count <= len(train_labels) or draws < 1:
        raise ValueError(f"count, draws: got {count}, {draws}. Pass 2 <= count <= {len(train_labels)} and draws > 0.")
    if not (varies(train_labels) and varies(test_labels)):
        return float("nan")
    scale = StandardScaler().fit(train_codes.astype(np.float64))
    train, test = (scale.transform(codes.astype(np.float64)) for codes in (train_codes, test_codes))
    rng = np.random.default_rng(seed)
    accuracies = []
    for _ in range(draws):
        rows = _balanced_rows(train_labels, count, rng)
        model = LogisticRegression(max_iter=10_000).fit(train[rows], train_labels[rows])
        accuracies.append((model.predict(test) == test_labels).mean())
    return float(np.mean(accuracies))


def _balanced_rows(labels: Labels, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` random rows, one of each class per round, the classes in random order."""
    order = rng.permutation(len(labels))
    _, sizes = np.unique(labels, return_counts=True)
    rounds = np.empty(len(labels), dtype=np.int64)
    rounds[np.argsort(labels[order], kind="stable")] = np.concatenate([np.arange(size) for size in sizes])
    return order[np.argsort(rounds + rng.random(len(rounds)))[:count]]
