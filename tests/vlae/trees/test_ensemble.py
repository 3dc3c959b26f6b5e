"""Boosted trees against scikit-learn's, number by number where no two latents are equally good."""

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from vlae.trees import ensemble, presorted
from vlae.trees.ensemble import fit_boosted_trees
from vlae.trees.presorted import BINS, GAP, bin_codes, cached


def data(size: int, latents: int, rows: int = 450) -> tuple[np.ndarray, np.ndarray]:
    """The first latent holds the value, with noise; the others are noise."""
    rng = np.random.default_rng(size)
    values, codes = rng.integers(size, size=rows), rng.normal(size=(rows, latents))
    codes[:, 0] = values + 0.5 * codes[:, 0]
    return codes, values


def agree(codes: np.ndarray, values: np.ndarray, train: int, stages: int = 100) -> None:
    """In the scores of all rows (multinomial ones up to a constant), predictions and importances."""
    result = fit_boosted_trees(codes[:train], values[:train], codes[train:], seed=0)
    model = GradientBoostingClassifier(random_state=0, n_estimators=stages).fit(codes[:train], values[:train])
    expected, scores = np.atleast_2d(model.decision_function(codes[train:]).T), result.scores
    if len(scores) > 1:
        expected, scores = expected - expected.mean(axis=0), scores - scores.mean(axis=0)
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    np.testing.assert_allclose(result.importances, model.feature_importances_, atol=1e-9)
    np.testing.assert_array_equal(result.predictions, model.predict(codes[train:]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("scale", "decimals"), [(1.0, 9), (1.0, 1), (1e3, 9), (1e-3, 9), (1e-6, 1)])
def test_trees_one_latent_agrees_with_sklearn(size: int, scale: float, decimals: int) -> None:
    """Equal values, and at 1e-6 neighbors closer than the gap below which they are one value."""
    codes, values = data(size, 1)
    agree((scale * codes.round(decimals)).astype(np.float32), values, 300)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("decimals", [9, 1])
def test_trees_several_latents_agree_in_large_nodes(monkeypatch: pytest.MonkeyPatch, size: int, decimals: int) -> None:
    """In nodes of few rows latents are often equally good; the first stages of these have none."""
    monkeypatch.setattr(ensemble, "STAGES", 3)
    codes, values = data(size, 5, 3000)
    agree(codes.round(decimals), values, 2500, 3)


@pytest.mark.parametrize("size", [2, 5])
def test_trees_all_stages_agree_with_sklearn(size: int) -> None:
    """Importances and accuracy of all stages agree."""
    codes, values = data(size, 4, 900)
    result = fit_boosted_trees(codes[:600], values[:600], codes[600:], seed=0)
    model = GradientBoostingClassifier(random_state=0).fit(codes[:600], values[:600])
    np.testing.assert_allclose(result.importances, model.feature_importances_, atol=0.01)
    accuracy = (result.predictions == values[600:]).mean()
    assert accuracy == pytest.approx(model.score(codes[600:], values[600:]), abs=0.02)


def test_bin_codes_do_not_separate_equal_values() -> None:
    """Bins never separate values closer than the gap."""
    rng = np.random.default_rng(2)
    codes = np.stack([rng.normal(size=999), rng.integers(0, 3, 999), 1e-7 * rng.random(999)], axis=1).astype(np.float32)
    result = bin_codes(codes)
    np.testing.assert_array_equal(result.counts.sum(axis=1), 999)
    np.testing.assert_array_equal((result.counts > 0).sum(axis=1), [BINS - 3, 3, 1])
    np.testing.assert_array_equal(result.splittable.any(axis=1), [True, False, False])
    for j, (values, starts) in enumerate(zip(result.values, result.starts, strict=True)):
        inner = starts[(starts > 0) & (starts < 999)]
        assert (values[inner] > values[inner - 1] + GAP).all()
        np.testing.assert_array_equal(np.bincount(result.by_row[:, j], minlength=BINS), result.counts[j])


def test_trees_seed_chooses_evenly_between_copies() -> None:
    """Copies of a latent are chosen with equal probability; predictions do not change."""
    codes, values = data(2, 1)
    copies = np.repeat(codes, 3, axis=1)
    result = [fit_boosted_trees(copies, values, copies[:5], seed=seed) for seed in range(20)]
    np.testing.assert_allclose(np.mean([trees.importances for trees in result], axis=0), 1 / 3, atol=0.05)
    assert len({trees.importances.tobytes() for trees in result}) == 20
    assert len({trees.scores.tobytes() for trees in result}) == 1
    again = fit_boosted_trees(copies, values, copies[:5], seed=[3])
    np.testing.assert_array_equal(
        again.importances, fit_boosted_trees(copies, values, copies[:5], seed=[3]).importances
    )


def test_trees_constant_codes_predict_commonest_value() -> None:
    """Constant codes predict the commonest value without a split."""
    rng = np.random.default_rng(2)
    values = np.repeat([-7, 5, 9], [3, 5, 4])
    result = fit_boosted_trees(np.zeros((12, 2)), values, rng.normal(size=(4, 2)), seed=0)
    np.testing.assert_array_equal(result.importances, 0)
    np.testing.assert_array_equal(result.predictions, 5)


def test_trees_two_rows_and_contradicting_rows() -> None:
    """Two rows are separated; rows with equal codes and different values agree with scikit-learn."""
    result = fit_boosted_trees(np.array([[0.0], [1.0]]), np.array([4, 2]), np.array([[-9.0], [9.0]]), seed=0)
    np.testing.assert_array_equal(result.predictions, [4, 2])
    agree(np.arange(36)[:, None] % 4 // 2, np.arange(36) % 7 % 3, 30)


def test_trees_single_value_raises() -> None:
    """The error names the argument and its value."""
    with pytest.raises(ValueError, match=r"train_values.*\[3\]"):
        fit_boosted_trees(np.zeros((4, 1)), np.full(4, 3), np.zeros((4, 1)), seed=0)


def test_cached_without_a_folder_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder for the cache functions are compiled in memory."""

    def without_folder(cache: bool, **settings: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(presorted, "njit", without_folder)

    def double(value: int) -> int:
        return 2 * value

    assert cached(presorted)(double)(4) == 8


def test_cached_name_depends_on_other_sources() -> None:
    """The cache's key depends on the source of the other modules."""

    def cache_name(*modules: Any) -> str:
        def function() -> int:
            return 1

        return cached(*modules)(function).__qualname__.rpartition("_")[2]

    assert len({cache_name(), cache_name(presorted), cache_name(ensemble), cache_name(presorted, ensemble)}) == 4
    assert cache_name(presorted) == cache_name(presorted)
