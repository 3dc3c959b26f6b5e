"""The metrics of mutual information, with scikit-learn per latent and factor, on numpy's bins."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from benchmarks.reference.representations import Representation

Encodings = NDArray[np.floating]
Factors = NDArray[np.integer]
Matrix = NDArray[np.float64]


def discretize(codes: Encodings, bins: int = 20) -> NDArray[np.int64]:
    """Return the bin of each code, (N, D) in 1..bins, by `np.histogram` and `np.digitize`."""
    return np.stack([np.digitize(code, np.histogram(code, bins)[1][:-1]) for code in codes.T], axis=1)


def mutual_information_matrix(codes: Encodings, factors: Factors, bins: int = 20) -> Matrix:
    """Return I(z_j; v_k), (D, K) nats."""
    cut = discretize(codes, bins)
    return np.array([[mutual_info_score(factor, code) for factor in factors.T] for code in cut.T])


def entropies(labels: NDArray[np.integer]) -> Matrix:
    """Return the entropy of each column, (K,) nats, as its information about itself."""
    return np.array([mutual_info_score(column, column) for column in labels.T])


def _top_two(values: Matrix) -> tuple[float, float]:
    """Return the two largest values; the second is NaN where there is only one, because no gap is defined."""
    ordered = sorted(values, reverse=True)
    return ordered[0], ordered[1] if len(ordered) > 1 else float("nan")


def mig(codes: Encodings, factors: Factors) -> float:
    """Return the MIG of Chen et al. 2018."""
    gaps = []
    for information, entropy in zip(mutual_information_matrix(codes, factors).T, entropies(factors), strict=True):
        first, second = _top_two(information)
        gaps.append((first - second) / entropy)
    return float(np.mean(gaps))


def mig_sup(codes: Encodings, factors: Factors) -> float:
    """Return the MIG-sup of Li et al. 2020."""
    normalized = mutual_information_matrix(codes, factors) / entropies(factors)
    gaps = []
    for information, variance in zip(normalized, np.var(codes, axis=0), strict=True):
        if variance > 1e-2:
            first, second = _top_two(information)
            gaps.append(first - second)
    return float(np.mean(gaps))


def modularity(codes: Encodings, factors: Factors) -> float:
    """Return the modularity of Ridgeway and Mozer 2018."""
    scores = []
    for information in mutual_information_matrix(codes, factors):
        squares = information**2
        rest = squares.sum() - squares.max()
        scores.append(1 - rest / (squares.max() * (len(information) - 1)) if squares.max() > 0 else 0.0)
    return float(np.mean(scores))


def dcimig(codes: Encodings, factors: Factors) -> float:
    """Return the DCIMIG of Sepliarskaia et al. 2019."""
    gaps = [0.0] * factors.shape[1]
    for information in mutual_information_matrix(codes, factors):
        first, second = _top_two(information)
        gaps[information.argmax()] = max(gaps[information.argmax()], first - second)
    return float(sum(gaps) / entropies(factors).sum())


def jemmig(codes: Encodings, factors: Factors, bins: int = 20) -> float:
    """Return the JEMMIG of Do and Tran 2020; of equally informative latents that of the smallest joint entropy."""
    information, cut = mutual_information_matrix(codes, factors, bins), discretize(codes, bins)
    scores = []
    for k, entropy in enumerate(entropies(factors)):
        first, second = _top_two(information[:, k])
        pairs = [code * (factors.max() + 1) + factors[:, k] for code in cut.T]
        joint = min(entropies(pairs[j][:, None])[0] for j in np.flatnonzero(first - information[:, k] < 1e-9))
        scores.append(1 - (joint - first + second) / (entropy + np.log(bins)))
    return float(np.mean(scores))


def golden(data: Representation) -> dict[str, float]:
    """Return the metrics of the train rows; NaN for a gap over latents of one latent."""
    metrics = {"mig": mig, "mig_sup": mig_sup, "modularity": modularity, "dcimig": dcimig, "jemmig": jemmig}
    return {name: metric(data.train_codes, data.train_factors) for name, metric in metrics.items()}
