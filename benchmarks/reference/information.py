"""Reference of the scores by mutual information: scikit-learn per latent and factor, on numpy's bins."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from benchmarks.reference.representations import Representation

Encodings = NDArray[np.floating]
Factors = NDArray[np.integer]
Matrix = NDArray[np.float64]


def binned(codes: Encodings, bins: int = 20) -> NDArray[np.int64]:
    """Bin of each code, (N, D) in 1..bins, by `np.histogram` and `np.digitize`."""
    return np.stack([np.digitize(code, np.histogram(code, bins)[1][:-1]) for code in codes.T], axis=1)


def mutual_information_matrix(codes: Encodings, factors: Factors, bins: int = 20) -> Matrix:
    """I(z_j; v_k), (D, K) nats."""
    cut = binned(codes, bins)
    return np.array([[mutual_info_score(factor, code) for factor in factors.T] for code in cut.T])


def entropies(labels: NDArray[np.integer]) -> Matrix:
    """Of each column, (K,) nats: what a variable tells of itself."""
    return np.array([mutual_info_score(column, column) for column in labels.T])


def _top_two(values: Matrix) -> tuple[float, float]:
    """The second is NaN where there is only one: no gap is defined."""
    ordered = sorted(values, reverse=True)
    return ordered[0], ordered[1] if len(ordered) > 1 else float("nan")


def mig(codes: Encodings, factors: Factors) -> float:
    """Chen et al. 2018."""
    gaps = []
    for told, entropy in zip(mutual_information_matrix(codes, factors).T, entropies(factors), strict=True):
        first, second = _top_two(told)
        gaps.append((first - second) / entropy)
    return float(np.mean(gaps))


def mig_sup(codes: Encodings, factors: Factors) -> float:
    """Li et al. 2020."""
    shares = mutual_information_matrix(codes, factors) / entropies(factors)
    gaps = []
    for share, variance in zip(shares, np.var(codes, axis=0), strict=True):
        if variance > 1e-2:
            first, second = _top_two(share)
            gaps.append(first - second)
    return float(np.mean(gaps))


def modularity(codes: Encodings, factors: Factors) -> float:
    """Ridgeway & Mozer 2018."""
    scores = []
    for told in mutual_information_matrix(codes, factors):
        squares = told**2
        rest = squares.sum() - squares.max()
        scores.append(1 - rest / (squares.max() * (len(told) - 1)) if squares.max() > 0 else 0.0)
    return float(np.mean(scores))


def dcimig(codes: Encodings, factors: Factors) -> float:
    """Sepliarskaia et al. 2019."""
    held = [0.0] * factors.shape[1]
    for told in mutual_information_matrix(codes, factors):
        first, second = _top_two(told)
        held[told.argmax()] = max(held[told.argmax()], first - second)
    return float(sum(held) / entropies(factors).sum())


def jemmig(codes: Encodings, factors: Factors, bins: int = 20) -> float:
    """Do & Tran 2020. Equally informative latents: the one with the smallest joint entropy."""
    information, cut = mutual_information_matrix(codes, factors, bins), binned(codes, bins)
    scores = []
    for k, entropy in enumerate(entropies(factors)):
        first, second = _top_two(information[:, k])
        pairs = [code * (factors.max() + 1) + factors[:, k] for code in cut.T]
        joint = min(entropies(pairs[j][:, None])[0] for j in np.flatnonzero(first - information[:, k] < 1e-9))
        scores.append(1 - (joint - first + second) / (entropy + np.log(bins)))
    return float(np.mean(scores))


def golden(representation: Representation) -> dict[str, float]:
    """The scores of the train rows. NaN where a gap over latents is asked of one latent."""
    scores = {"mig": mig, "mig_sup": mig_sup, "modularity": modularity, "dcimig": dcimig, "jemmig": jemmig}
    return {name: score(representation.train_codes, representation.train_factors) for name, score in scores.items()}
