"""DCI against the reference on every representation, by hand, and on degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.dci import dci_scores, rung_dci_scores

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dci.json").read_text())
TOLERANCES = {"disentanglement": 0.005, "completeness": 0.005, "informativeness": 0.01}
RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(size, size=300) for size in (2, 3, 4)], axis=1)
CODES = (FACTORS + RNG.normal(0, 0.2, (300, 3))).astype(np.float32)


def halves(codes: np.ndarray, factors: np.ndarray = FACTORS) -> tuple[np.ndarray, ...]:
    return codes[:200], factors[:200], codes[200:], factors[200:]


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name: str) -> None:
    """Which of two equally good latents is taken moves the scores of `duplicated` by .007, the reference's too."""
    data = representation(name)
    seeds = range(20) if name == "duplicated" else range(1)
    arrays = data.train_codes, data.train_factors, data.test_codes, data.test_factors
    runs = [dci_scores(*arrays, seed=seed) for seed in seeds]
    for score, tolerance in TOLERANCES.items():
        found = np.mean([getattr(run, score) for run in runs])
        assert found == pytest.approx(GOLDEN[name][score], abs=tolerance, nan_ok=True), score


def test_scores_by_hand_from_the_importances() -> None:
    mixed = CODES @ np.array([[1, 0.4, 0, 0], [0, 1, 0.7, 0], [0.2, 0, 1, 0]])
    found = dci_scores(*halves(mixed), seed=0)
    shares = found.importances
    assert shares.shape == (4, 3)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_array_equal(shares[3], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log(shares), 0)
        rows = shares / shares.sum(axis=1, keepdims=True)
        row_terms = np.where(rows > 0, rows * np.log(rows), 0)
    assert found.completeness == pytest.approx((1 + terms.sum(axis=0) / np.log(4)).mean())
    weights = shares.sum(axis=1) / 3
    assert found.disentanglement == pytest.approx((weights * (1 + row_terms.sum(axis=1) / np.log(3))).sum())
    assert found.informativeness == pytest.approx(found.accuracies.mean())


def test_neither_threads_nor_names_of_values_matter_and_the_seed_does() -> None:
    copies = np.concatenate([CODES, CODES + 1], axis=1)
    found = dci_scores(*halves(copies), seed=0)
    for same in (
        dci_scores(*halves(copies), seed=0, n_jobs=3),
        dci_scores(*halves(copies, 5 * FACTORS - 3), seed=0),
        dci_scores(*halves(copies.astype(np.float64)), seed=0),
    ):
        np.testing.assert_array_equal(same.importances, found.importances)
        assert same.informativeness == found.informativeness
    assert (dci_scores(*halves(copies), seed=1).importances != found.importances).any()


def test_factors_with_one_value_are_left_out() -> None:
    still = np.insert(FACTORS, 3, 4, axis=1)
    still[200:, 3] = RNG.integers(0, 3, 100)
    found, without = dci_scores(*halves(CODES, still), seed=0), dci_scores(*halves(CODES), seed=0)
    np.testing.assert_array_equal(np.isnan(found.accuracies), [False, False, False, True])
    np.testing.assert_array_equal(found.importances[:, :3], without.importances)
    assert np.isnan(found.importances[:, 3]).all()
    assert (found.disentanglement, found.completeness) == (without.disentanglement, without.completeness)
    assert rung_dci_scores(found.importances, [1, 1, 1]) == (found.disentanglement, found.completeness)
    none = dci_scores(*halves(CODES, still[:, 3:]), seed=0)
    assert np.isnan([none.disentanglement, none.completeness, none.informativeness]).all()


def test_one_factor_or_one_latent() -> None:
    found = dci_scores(*halves(CODES, FACTORS[:, :1]), seed=0)
    assert np.isnan(found.disentanglement)
    assert found.completeness > 0.9
    found = dci_scores(*halves(CODES[:, :1]), seed=0)
    assert np.isnan(found.completeness)
    assert found.disentanglement == pytest.approx(0)


def test_codes_that_tell_nothing() -> None:
    found = dci_scores(*halves(np.zeros((300, 3))), seed=0)
    assert (found.disentanglement, found.completeness) == (0, 0)
    commonest = [np.bincount(column[:200]).argmax() for column in FACTORS.T]
    np.testing.assert_allclose(found.accuracies, (FACTORS[200:] == commonest).mean(axis=0))


def test_values_unknown_to_the_train_rows_are_mistakes() -> None:
    unknown = FACTORS.copy()
    unknown[200:] += 100
    assert dci_scores(*halves(CODES, unknown), seed=0).informativeness == 0


def test_two_rows_are_enough() -> None:
    codes, factors = np.array([[-50.0, 0.0], [50.0, 0.0]]), np.array([[0, 1], [1, 1]])
    found = dci_scores(codes, factors, codes, factors, seed=0)
    np.testing.assert_array_equal(found.importances[:, 0], [1, 0])
    assert (found.completeness, found.informativeness) == (1, 1)


def test_rungs_by_hand() -> None:
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
def test_rungs_that_do_not_fit(dims: list[int]) -> None:
    with pytest.raises(ValueError, match=r"got \(3, 2\)"):
        rung_dci_scores(np.zeros((3, 2)), dims)


@pytest.mark.parametrize(
    ("shapes", "code", "message"),
    [
        (((5, 2), (4, 1), (3, 2), (3, 1)), 0, "got"),
        (((5, 2), (5, 1), (3, 3), (3, 1)), 0, "got"),
        (((5, 2), (5, 2), (3, 2), (3, 1)), 0, "got"),
        (((5, 0), (5, 1), (3, 0), (3, 1)), 0, "got"),
        (((1, 2), (1, 1), (3, 2), (3, 1)), 0, r"2 train rows, got \(1, 2\)"),
        (((5, 2), (5, 1), (3, 2), (3, 1)), np.nan, "not finite"),
        (((5, 2), (5, 1), (3, 2), (3, 1)), 1e300, r"finite in float32, got up to 1e\+300"),
    ],
)
def test_refuses(shapes: tuple[tuple[int, int], ...], code: float, message: str) -> None:
    train, values, test, truth = (np.zeros(shape) for shape in shapes)
    if code:
        test[0, 0] = code
    with pytest.raises(ValueError, match=message):
        dci_scores(train, values.astype(int), test, truth.astype(int), seed=0)
    with pytest.raises(ValueError, match="max_workers"):
        dci_scores(*halves(CODES), seed=0, n_jobs=0)
