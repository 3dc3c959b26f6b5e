"""SAP against scikit-learn's support vector machine, and on input whose value follows from the construction."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.sap import sap_score, svm_accuracies

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sap.json").read_text())
FACTORS = np.random.default_rng(0).integers((2, 5), size=(600, 2))
CODES = FACTORS + np.random.default_rng(1).normal(0, 0.3, (600, 2))


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:400], factors[:400], codes[400:], factors[400:]


def sklearn_accuracies(codes: np.ndarray, factors: np.ndarray) -> list[list[float]]:
    train, values, test, truth = halves(codes, factors)
    machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, tol=1e-10, max_iter=100_000)
    return [
        [machine.fit(train[:, [j]], values[:, k]).score(test[:, [j]], truth[:, k]) for k in range(factors.shape[1])]
        for j in range(codes.shape[1])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_sap_representations_agree_with_reference(name: str) -> None:
    """The metric agrees with scikit-learn on every representation."""
    data = representation(name)
    result = sap_score(data.train_codes, data.train_factors, data.test_codes, data.test_factors)
    np.testing.assert_allclose(result, GOLDEN[name]["sap"], atol=2e-3)


@pytest.mark.parametrize("scale", [1e-2, 1, 30])
@pytest.mark.parametrize("shift", [0, -3, 100])
def test_svm_accuracies_agree_with_exact_optimum(scale: float, shift: float) -> None:
    """Binary and many-valued factors, uneven ones, at any shift and scale."""
    rng = np.random.default_rng(2)
    uneven = np.stack([rng.random(600) < 0.1, FACTORS[:, 1] ** 2, FACTORS[:, 0] * 7 - 3], axis=1).astype(int)
    codes = scale * (np.concatenate([uneven[:, :1] + CODES[:, :1], CODES], axis=1) + shift)
    np.testing.assert_allclose(svm_accuracies(*halves(codes, uneven)), sklearn_accuracies(codes, uneven), atol=0.01)


def test_svm_accuracies_tiny_latent_has_exact_boundary() -> None:
    """All rows are within the margin: linear equations, solved in fractions; LinearSVC stops before."""
    values, codes = FACTORS[:, 0], 1e-4 * CODES[:, 0]
    sums = {"xx": Fraction(1), "x": Fraction(0), "1": Fraction(1), "yx": Fraction(0), "y": Fraction(0)}
    for value, count in enumerate(np.bincount(values[:400])):
        cost = Fraction(2, 100) * Fraction(400, 2 * int(count))
        for code in map(Fraction, codes[:400][values[:400] == value].tolist()):
            sign = 2 * value - 1
            for name, term in {"xx": code**2, "x": code, "1": 1, "yx": sign * code, "y": sign}.items():
                sums[name] += cost * term
    weight = sums["1"] * sums["yx"] - sums["x"] * sums["y"]
    offset = sums["xx"] * sums["y"] - sums["x"] * sums["yx"]
    expected = ((codes[400:] > float(-offset / weight)) == (values[400:] == 1)).mean()
    assert svm_accuracies(*halves(codes[:, None], values[:, None]))[0, 0] == expected


def test_svm_accuracies_constant_latent_predicts_one_value() -> None:
    """The commonest value, because only the rest of a small class lowers the offset."""
    rng = np.random.default_rng(2)
    uneven = np.repeat([0, 1, 2], [100, 100, 400])[rng.permutation(600)][:, None]
    expected = (uneven[400:] == 2).mean()
    assert svm_accuracies(*halves(np.zeros((600, 1)), uneven))[0, 0] == pytest.approx(expected)


def test_sap_gap_is_between_two_best_latents() -> None:
    """The gap is between the two best latents, whatever their order and sign."""
    accuracies = svm_accuracies(*halves(CODES))
    assert sap_score(*halves(CODES)) == pytest.approx(abs(accuracies[0] - accuracies[1]).mean())
    assert sap_score(*halves(np.concatenate([CODES, CODES], axis=1))) == 0
    assert sap_score(*halves(CODES[:, ::-1])) == sap_score(*halves(CODES))
    np.testing.assert_array_equal(svm_accuracies(*halves(-CODES)), accuracies)


def test_sap_unseen_test_values_are_errors() -> None:
    """Values are categories, and those without train rows count as errors."""
    assert sap_score(*halves(CODES, FACTORS * np.array([-5, 11]))) == sap_score(*halves(CODES))
    unseen = FACTORS.copy()
    unseen[400:] += 100
    np.testing.assert_array_equal(svm_accuracies(*halves(CODES, unseen)), 0)


def test_sap_constant_factors_are_left_out() -> None:
    """Constant factors change nothing; with one latent the metric is NaN."""
    padded = np.insert(FACTORS, 1, 4, axis=1)
    assert sap_score(*halves(CODES, padded)) == sap_score(*halves(CODES))
    assert np.isnan(svm_accuracies(*halves(CODES, padded))[:, 1]).all()
    assert np.isnan(sap_score(*halves(CODES, padded[:, 1:2])))
    assert np.isnan(sap_score(*halves(CODES[:, :1])))


def test_sap_two_rows_are_enough() -> None:
    """Two rows give a complete score."""
    codes, factors = np.array([[-50.0, 0.0], [50.0, 0.0]]), np.array([[0], [1]])
    assert sap_score(codes, factors, codes, factors) == 0.5


@pytest.mark.parametrize(
    ("shapes", "broken"),
    [
        (((5, 2), (4, 1), (3, 2), (3, 1)), False),
        (((5, 2), (5, 1), (3, 3), (3, 1)), False),
        (((5, 2), (5, 2), (3, 2), (3, 1)), False),
        (((5, 0), (5, 1), (3, 0), (3, 1)), False),
        (((5, 2), (5, 1), (0, 2), (0, 1)), False),
        (((5, 2), (5, 1), (3, 2), (3, 1)), True),
    ],
)
def test_sap_invalid_input_raises(shapes: tuple[tuple[int, int], ...], broken: bool) -> None:
    """The error names the argument."""
    train, values, test, truth = (np.zeros(shape) for shape in shapes)
    if broken:
        test[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"codes|train"):
        sap_score(train, values.astype(int), test, truth.astype(int))
