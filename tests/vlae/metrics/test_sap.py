"""SAP against scikit-learn's support vector machine, and on input with a known answer."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.sap import sap_score, svm_accuracies

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sap.json").read_text())
RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(0, size, 600) for size in (2, 5)], axis=1)
CODES = FACTORS + RNG.normal(0, 0.3, (600, 2))


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:400], factors[:400], codes[400:], factors[400:]


def machine_accuracies(codes: np.ndarray, factors: np.ndarray) -> list[list[float]]:
    train, values, test, truth = halves(codes, factors)
    machine = LinearSVC(C=0.01, class_weight="balanced", dual=False, tol=1e-10, max_iter=100_000)
    return [
        [machine.fit(train[:, [j]], values[:, k]).score(test[:, [j]], truth[:, k]) for k in range(factors.shape[1])]
        for j in range(codes.shape[1])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name: str) -> None:
    data = representation(name)
    found = sap_score(data.train_codes, data.train_factors, data.test_codes, data.test_factors)
    np.testing.assert_allclose(found, GOLDEN[name]["sap"], atol=2e-3)


@pytest.mark.parametrize("scale", [1e-2, 1, 30])
@pytest.mark.parametrize("shift", [0, -3, 100])
def test_every_accuracy_is_that_of_the_exact_machine(scale: float, shift: float) -> None:
    """Binary and many-valued factors, uneven ones, at any place and scale."""
    uneven = np.stack([RNG.random(600) < 0.1, FACTORS[:, 1] ** 2, FACTORS[:, 0] * 7 - 3], axis=1).astype(int)
    codes = scale * (np.concatenate([uneven[:, :1] + CODES[:, :1], CODES], axis=1) + shift)
    np.testing.assert_allclose(svm_accuracies(*halves(codes, uneven)), machine_accuracies(codes, uneven), atol=0.01)


def test_a_latent_of_tiny_scale_has_the_exact_boundary() -> None:
    """All rows are within the margin: linear equations, solved in fractions. LinearSVC stops short of it here."""
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


def test_a_constant_latent_predicts_one_value() -> None:
    """Of an uneven factor the commonest, since only the rest of a small class pulls the offset down."""
    uneven = np.repeat([0, 1, 2], [100, 100, 400])[RNG.permutation(600)][:, None]
    expected = (uneven[400:] == 2).mean()
    assert svm_accuracies(*halves(np.zeros((600, 1)), uneven))[0, 0] == pytest.approx(expected)


def test_the_gap_is_that_of_the_two_best_latents() -> None:
    accuracies = svm_accuracies(*halves(CODES))
    assert sap_score(*halves(CODES)) == pytest.approx(abs(accuracies[0] - accuracies[1]).mean())
    assert sap_score(*halves(np.concatenate([CODES, CODES], axis=1))) == 0
    assert sap_score(*halves(CODES[:, ::-1])) == sap_score(*halves(CODES))
    np.testing.assert_array_equal(svm_accuracies(*halves(-CODES)), accuracies)


def test_factor_values_are_names_and_unknown_ones_are_mistakes() -> None:
    assert sap_score(*halves(CODES, FACTORS * np.array([-5, 11]))) == sap_score(*halves(CODES))
    unknown = FACTORS.copy()
    unknown[400:] += 100
    np.testing.assert_array_equal(svm_accuracies(*halves(CODES, unknown)), 0)


def test_constant_factors_are_left_out() -> None:
    still = np.insert(FACTORS, 1, 4, axis=1)
    assert sap_score(*halves(CODES, still)) == sap_score(*halves(CODES))
    assert np.isnan(svm_accuracies(*halves(CODES, still))[:, 1]).all()
    assert np.isnan(sap_score(*halves(CODES, still[:, 1:2])))
    assert np.isnan(sap_score(*halves(CODES[:, :1])))


def test_two_rows_are_enough() -> None:
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
def test_refuses(shapes: tuple[tuple[int, int], ...], broken: bool) -> None:
    train, values, test, truth = (np.zeros(shape) for shape in shapes)
    if broken:
        test[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"got|not finite"):
        sap_score(train, values.astype(int), test, truth.astype(int))
