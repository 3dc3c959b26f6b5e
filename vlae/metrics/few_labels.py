"""What a code is worth where labels are scarce."""

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
    """Test accuracy of a logistic regression fitted to `count` labeled rows, mean over `draws` choices of them.

    The semi-supervised use of a code that Kingma et al. (2014) call M1, with the linear classifier of scikit-learn
    (C = 1). Codes are standardized by all train rows: those without labels are free. The labeled rows are spread
    over the classes as evenly as the classes' sizes allow; with fewer rows than classes some are never predicted.

    Args:
        train_codes: (N, D) float.
        train_labels: (N,) int.
        test_codes: (M, D) float.
        test_labels: (M,) int.
        count: labeled rows of each choice, 2 to N.
        seed: of the choices.
        draws: choices, at least 1.

    Raises:
        ValueError: shapes that do not fit, no latents, codes that are not finite, or count or draws out of range.

    Returns:
        In [0, 1], plain accuracy; a code that tells nothing gets about 1 / classes, whatever their shares, since the
        labeled rows are even. NaN for labels with one value in either set.
    """
    if train_labels.ndim != 1 or test_labels.ndim != 1:
        raise ValueError(f"labels must be (N,) and (M,), got {train_labels.shape}, {test_labels.shape}")
    check_split(train_codes, train_labels[:, None], test_codes, test_labels[:, None])
    if not 2 <= count <= len(train_labels) or draws < 1:
        raise ValueError(f"need 2 <= count <= {len(train_labels)} and draws > 0, got {count}, {draws}")
    if not (varies(train_labels) and varies(test_labels)):
        return float("nan")
    scale = StandardScaler().fit(train_codes.astype(np.float64))
    train, test = (scale.transform(codes.astype(np.float64)) for codes in (train_codes, test_codes))
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        rows = _even_choice(train_labels, count, rng)
        model = LogisticRegression(max_iter=10_000).fit(train[rows], train_labels[rows])
        scores.append((model.predict(test) == test_labels).mean())
    return float(np.mean(scores))


def _even_choice(labels: Labels, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows (count,): one of each class at random in turn, classes in random order, until enough are taken."""
    order = rng.permutation(len(labels))
    grouped = np.argsort(labels[order], kind="stable")
    _, sizes = np.unique(labels, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[grouped] = np.concatenate([np.arange(size) for size in sizes])
    return order[np.argsort(turn + rng.random(len(turn)))[:count]]
