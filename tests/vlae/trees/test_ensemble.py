"""Boosted trees against scikit-learn's, number by number where no two latents are equally good."""

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from vlae.trees import ensemble, presorted
from vlae.trees.ensemble import boosted_trees
from vlae.trees.presorted import BINS, GAP, binned, cached

RNG = np.random.default_rng(0)


def data(size: int, latents: int, rows: int = 450) -> tuple[np.ndarray, np.ndarray]:
    """The first latent tells the value, roughly; the others are noise."""
    rng = np.random.default_rng(size)
    values, codes = rng.integers(size, size=rows), rng.normal(size=(rows, latents))
    codes[:, 0] = values + 0.5 * codes[:, 0]
    return codes, values


def agree(codes: np.ndarray, values: np.ndarray, train: int, stages: int = 100) -> None:
    """In the scores of all rows (multinomial ones up to a constant), predictions and importances."""
    found = boosted_trees(codes[:train], values[:train], codes[train:], seed=0)
    model = GradientBoostingClassifier(random_state=0, n_estimators=stages).fit(codes[:train], values[:train])
    expected, scores = np.atleast_2d(model.decision_function(codes[train:]).T), found.scores
    if len(scores) > 1:
        expected, scores = expected - expected.mean(axis=0), scores - scores.mean(axis=0)
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    np.testing.assert_allclose(found.importances, model.feature_importances_, atol=1e-9)
    np.testing.assert_array_equal(found.predictions, model.predict(codes[train:]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("scale", "decimals"), [(1.0, 9), (1.0, 1), (1e3, 9), (1e-3, 9), (1e-6, 1)])
def test_one_latent_is_the_references_to_rounding(size: int, scale: float, decimals: int) -> None:
    """Equal values, and at 1e-6 neighbors closer than the limit below which they are one value."""
    codes, values = data(size, 1)
    agree((scale * codes.round(decimals)).astype(np.float32), values, 300)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("decimals", [9, 1])
def test_several_latents_too_while_nodes_are_large(monkeypatch: pytest.MonkeyPatch, size: int, decimals: int) -> None:
    """In nodes of few rows latents are often equally good; the first stages of these have none."""
    monkeypatch.setattr(ensemble, "STAGES", 3)
    codes, values = data(size, 5, 3000)
    agree(codes.round(decimals), values, 2500, 3)


@pytest.mark.parametrize("size", [2, 5])
def test_importances_and_accuracy_of_all_stages(size: int) -> None:
    codes, values = data(size, 4, 900)
    found = boosted_trees(codes[:600], values[:600], codes[600:], seed=0)
    model = GradientBoostingClassifier(random_state=0).fit(codes[:600], values[:600])
    np.testing.assert_allclose(found.importances, model.feature_importances_, atol=0.01)
    accuracy = (found.predictions == values[600:]).mean()
    assert accuracy == pytest.approx(model.score(codes[600:], values[600:]), abs=0.02)


def test_bins_part_no_values_that_are_one() -> None:
    codes = np.stack([RNG.normal(size=999), RNG.integers(0, 3, 999), 1e-7 * RNG.random(999)], axis=1).astype(np.float32)
    found = binned(codes)
    np.testing.assert_array_equal(found.counts.sum(axis=1), 999)
    np.testing.assert_array_equal((found.counts > 0).sum(axis=1), [BINS - 3, 3, 1])
    np.testing.assert_array_equal(found.wide.any(axis=1), [True, False, False])
    for j, (values, starts) in enumerate(zip(found.values, found.starts, strict=True)):
        inner = starts[(starts > 0) & (starts < 999)]
        assert (values[inner] > values[inner - 1] + GAP).all()
        np.testing.assert_array_equal(np.bincount(found.by_row[:, j], minlength=BINS), found.counts[j])


def test_the_seed_chooses_between_copies_with_equal_chances() -> None:
    codes, values = data(2, 1)
    copies = np.repeat(codes, 3, axis=1)
    found = [boosted_trees(copies, values, copies[:5], seed=seed) for seed in range(20)]
    np.testing.assert_allclose(np.mean([trees.importances for trees in found], axis=0), 1 / 3, atol=0.05)
    assert len({trees.importances.tobytes() for trees in found}) == 20
    assert len({trees.scores.tobytes() for trees in found}) == 1
    again = boosted_trees(copies, values, copies[:5], seed=[3])
    np.testing.assert_array_equal(again.importances, boosted_trees(copies, values, copies[:5], seed=[3]).importances)


def test_constant_codes_predict_the_commonest_value() -> None:
    values = np.repeat([-7, 5, 9], [3, 5, 4])
    found = boosted_trees(np.zeros((12, 2)), values, RNG.normal(size=(4, 2)), seed=0)
    np.testing.assert_array_equal(found.importances, 0)
    np.testing.assert_array_equal(found.predictions, 5)


def test_two_rows_and_rows_that_contradict() -> None:
    found = boosted_trees(np.array([[0.0], [1.0]]), np.array([4, 2]), np.array([[-9.0], [9.0]]), seed=0)
    np.testing.assert_array_equal(found.predictions, [4, 2])
    agree(np.arange(36)[:, None] % 4 // 2, np.arange(36) % 7 % 3, 30)


def test_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two distinct values, got \[3\]"):
        boosted_trees(np.zeros((4, 1)), np.full(4, 3), np.zeros((4, 1)), seed=0)


def test_compiles_without_a_folder_to_keep_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_folder(cache: bool, **settings: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(presorted, "njit", without_folder)

    def double(value: int) -> int:
        return 2 * value

    assert cached(presorted)(double)(4) == 8


def test_the_name_it_is_kept_under_follows_the_other_sources() -> None:
    def kept(*modules: Any) -> str:
        def function() -> int:
            return 1

        return cached(*modules)(function).__qualname__.rpartition("_")[2]

    assert len({kept(), kept(presorted), kept(ensemble), kept(presorted, ensemble)}) == 4
    assert kept(presorted) == kept(presorted)
