"""DCI against the reference on every representation, by hand, and on degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.dci import dci_scores, rung_dci_scores

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dci.json").read_text())
TOLERANCES = {"disentanglement": 0.005, "completeness": 0.005, "informativeness": 0.01}
FACTORS = np.random.default_rng(0).integers((2, 3, 4), size=(300, 3))
CODES = (FACTORS + np.random.default_rng(1).normal(0, 0.2, (300, 3))).astype(np.float32)


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:200], factors[:200], codes[200:], factors[200:]


@pytest.mark.parametrize("name", NAMES)
def test_dci_representations_agree_with_reference(name: str) -> None:
    """The choice between equally good latents moves the scores of `duplicated` by .007, as in the reference."""
    data = representation(name)
    seeds = range(20) if name == "duplicated" else range(1)
    arrays = data.train_codes, data.train_factors, data.test_codes, data.test_factors
    runs = [dci_scores(*arrays, seed=seed) for seed in seeds]
    for score, tolerance in TOLERANCES.items():
        result = np.mean([getattr(run, score) for run in runs])
        assert result == pytest.approx(GOLDEN[name][score], abs=tolerance, nan_ok=True), score


def test_dci_scores_follow_from_importances() -> None:
    """The scores are the published formulas of the importances."""
    mixed = CODES @ np.array([[1, 0.4, 0, 0], [0, 1, 0.7, 0], [0.2, 0, 1, 0]])
    result = dci_scores(*halves(mixed), seed=0)
    importances = result.importances
    assert importances.shape == (4, 3)
    np.testing.assert_allclose(importances.sum(axis=0), 1)
    np.testing.assert_array_equal(importances[3], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(importances > 0, importances * np.log(importances), 0)
        rows = importances / importances.sum(axis=1, keepdims=True)
        row_terms = np.where(rows > 0, rows * np.log(rows), 0)
    assert result.completeness == pytest.approx((1 + terms.sum(axis=0) / np.log(4)).mean())
    weights = importances.sum(axis=1) / 3
    assert result.disentanglement == pytest.approx((weights * (1 + row_terms.sum(axis=1) / np.log(3))).sum())
    assert result.informativeness == pytest.approx(result.accuracies.mean())


def test_dci_threads_and_value_names_do_not_matter() -> None:
    """Neither threads, names of values nor float64 matter; the seed does."""
    copies = np.concatenate([CODES, CODES + 1], axis=1)
    result = dci_scores(*halves(copies), seed=0)
    for same in (
        dci_scores(*halves(copies), seed=0, n_jobs=3),
        dci_scores(*halves(copies, 5 * FACTORS - 3), seed=0),
        dci_scores(*halves(copies.astype(np.float64)), seed=0),
    ):
        np.testing.assert_array_equal(same.importances, result.importances)
        assert same.informativeness == result.informativeness
    assert (dci_scores(*halves(copies), seed=1).importances != result.importances).any()


def test_dci_constant_factors_are_left_out() -> None:
    """A factor with one train value is NaN and changes no score."""
    rng = np.random.default_rng(2)
    padded = np.insert(FACTORS, 3, 4, axis=1)
    padded[200:, 3] = rng.integers(0, 3, 100)
    result, without = dci_scores(*halves(CODES, padded), seed=0), dci_scores(*halves(CODES), seed=0)
    np.testing.assert_array_equal(np.isnan(result.accuracies), [False, False, False, True])
    np.testing.assert_array_equal(result.importances[:, :3], without.importances)
    assert np.isnan(result.importances[:, 3]).all()
    assert (result.disentanglement, result.completeness) == (without.disentanglement, without.completeness)
    assert rung_dci_scores(result.importances, [1, 1, 1]) == (result.disentanglement, result.completeness)
    none = dci_scores(*halves(CODES, padded[:, 3:]), seed=0)
    assert np.isnan([none.disentanglement, none.completeness, none.informativeness]).all()


def test_dci_single_factor_or_latent_is_nan() -> None:
    """With one factor the disentanglement is undefined, with one latent the completeness."""
    result = dci_scores(*halves(CODES, FACTORS[:, :1]), seed=0)
    assert np.isnan(result.disentanglement)
    assert result.completeness > 0.9
    result = dci_scores(*halves(CODES[:, :1]), seed=0)
    assert np.isnan(result.completeness)
    assert result.disentanglement == pytest.approx(0)


def test_dci_constant_codes_predict_commonest_value() -> None:
    """Constant codes score 0 and predict the commonest value."""
    result = dci_scores(*halves(np.zeros((300, 3))), seed=0)
    assert (result.disentanglement, result.completeness) == (0, 0)
    commonest = [np.bincount(column[:200]).argmax() for column in FACTORS.T]
    np.testing.assert_allclose(result.accuracies, (FACTORS[200:] == commonest).mean(axis=0))


def test_dci_unseen_test_values_are_errors() -> None:
    """Test values without train rows count as errors."""
    unseen = FACTORS.copy()
    unseen[200:] += 100
    assert dci_scores(*halves(CODES, unseen), seed=0).informativeness == 0


def test_dci_two_rows_are_enough() -> None:
    """Two rows give a complete score."""
    codes, factors = np.array([[-50.0, 0.0], [50.0, 0.0]]), np.array([[0, 1], [1, 1]])
    result = dci_scores(codes, factors, codes, factors, seed=0)
    np.testing.assert_array_equal(result.importances[:, 0], [1, 0])
    assert (result.completeness, result.informativeness) == (1, 1)


def test_rung_dci_agrees_with_formula() -> None:
    """Rung 0 has .8 and .1 of the two factors, rung 1 the rest."""
    importances = np.array([[0.5, 0.1], [0.3, 0.0], [0.2, 0.9]])
    rungs = np.array([[0.8, 0.1], [0.2, 0.9]])
    bits = [-(p * np.log2(p)).sum() for p in (rungs[0] / 0.9, rungs[1] / 1.1)]
    expected = 1 - (0.9 * bits[0] + 1.1 * bits[1]) / 2, 1 + (rungs * np.log2(rungs)).sum() / 2
    assert rung_dci_scores(importances, [2, 1]) == pytest.approx(expected)
    assert rung_dci_scores(np.eye(4)[:, [0, 3]], [2, 2]) == (1, 1)
    assert rung_dci_scores(np.zeros((3, 2)), [2, 1]) == (0, 0)
    disentanglement, completeness = rung_dci_scores(importances, [3])
    assert disentanglement == pytest.approx(0)
    assert np.isnan(completeness)
    assert np.isnan(rung_dci_scores(importances * [1, np.nan], [2, 1])[0])


@pytest.mark.parametrize("dims", [[], [2], [2, 2], [3, 0]])
def test_rung_dci_invalid_dims_raise(dims: list[int]) -> None:
    """The error names the shape of the importances."""
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        rung_dci_scores(np.zeros((3, 2)), dims)


@pytest.mark.parametrize(
    ("shapes", "code", "message"),
    [
        (((5, 2), (4, 1), (3, 2), (3, 1)), 0, "got"),
        (((5, 2), (5, 1), (3, 3), (3, 1)), 0, "got"),
        (((5, 2), (5, 2), (3, 2), (3, 1)), 0, "got"),
        (((5, 0), (5, 1), (3, 0), (3, 1)), 0, "got"),
        (((1, 2), (1, 1), (3, 2), (3, 1)), 0, r"train_codes.*\(1, 2\)"),
        (((5, 2), (5, 1), (3, 2), (3, 1)), np.nan, "codes"),
        (((5, 2), (5, 1), (3, 2), (3, 1)), 1e300, r"1e\+300"),
    ],
)
def test_dci_invalid_input_raises(shapes: tuple[tuple[int, int], ...], code: float, message: str) -> None:
    """The error names the argument and its shape."""
    train, values, test, truth = (np.zeros(shape) for shape in shapes)
    if code:
        test[0, 0] = code
    with pytest.raises(ValueError, match=message):
        dci_scores(train, values.astype(int), test, truth.astype(int), seed=0)
    with pytest.raises(ValueError, match="max_workers"):
        dci_scores(*halves(CODES), seed=0, n_jobs=0)
