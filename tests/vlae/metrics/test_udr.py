"""Ranking without factors: copies of one code, unrelated codes, and the published formula in loops."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from vlae.metrics.udr import udr_score

RNG = np.random.default_rng(0)
CODE = RNG.normal(size=(2000, 4)).astype(np.float32)


def _by_the_formula(first: np.ndarray, second: np.ndarray) -> float:
    """UDR of a pair whose latents are all informative, entry by entry."""
    matrix = np.array([[abs(spearmanr(a, b).statistic) for b in second.T] for a in first.T])
    total = 0.0
    for b in range(matrix.shape[1]):
        total += matrix[:, b].max() ** 2 / matrix[:, b].sum()
    for a in range(matrix.shape[0]):
        total += matrix[a].max() ** 2 / matrix[a].sum()
    return total / sum(matrix.shape)


def test_published_formula() -> None:
    mixed = [CODE @ RNG.normal(size=(4, size)) for size in (4, 3, 5)]
    models = [*mixed, np.round(CODE)]  # ties share their rank
    expected = []
    for i, model in enumerate(models):
        expected.append(np.median([_by_the_formula(model, other) for j, other in enumerate(models) if j != i]))
    np.testing.assert_allclose(udr_score(models), expected, atol=1e-9)


def test_the_same_latents_in_other_order_sign_and_scale_are_the_best() -> None:
    """Ranks see no monotone change. Of independent latents the other entries are chance, .02 each."""
    found = udr_score([CODE, -CODE[:, ::-1], np.exp(CODE)])
    assert found.shape == (3,)
    assert found.dtype == np.float64
    assert (found > 0.9).all()
    assert (found <= 1).all()
    np.testing.assert_allclose(udr_score([CODE[:, :1], -(CODE[:, :1] ** 3)]), 1)


def test_a_rotated_code_ranks_below() -> None:
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    found = udr_score([CODE, CODE[:, ::-1], -CODE, CODE @ turn])
    assert found[3] < 0.5 < found[:3].min()
    unrelated = RNG.normal(size=CODE.shape)
    assert udr_score([CODE, unrelated]).max() < 0.05


def test_two_copies_of_a_latent_halve_its_strength() -> None:
    one, two = CODE[:, :1], CODE[:, [0, 0]]
    # Per latent: 1/2 of the single one, whose row has two entries of 1, and 1 of each copy.
    np.testing.assert_allclose(udr_score([one, two]), (0.5 + 1 + 1) / 3)


def test_inactive_latents_are_left_out() -> None:
    noise = RNG.normal(size=(2, *CODE.shape)).astype(np.float32)
    wide = [np.concatenate([CODE, 0.01 * noise[0]], axis=1), np.concatenate([0.01 * noise[1], CODE], axis=1)]
    alone = udr_score([CODE, CODE])
    np.testing.assert_allclose(udr_score(wide), alone)
    masks = [np.arange(8) < 4, np.arange(8) >= 4]
    np.testing.assert_allclose(udr_score([wide[0] * 1e3, wide[1]], active=masks), alone)
    assert udr_score(wide, active=[np.ones(8, bool)] * 2).max() < 0.6
    # A constant latent has no ranks, active or not.
    dead = np.column_stack([CODE, np.full(2000, 7)])
    np.testing.assert_allclose(udr_score([dead, CODE], active=[np.ones(5, bool), np.ones(4, bool)]), alone)


def test_a_model_with_nothing_active_scores_zero() -> None:
    np.testing.assert_array_equal(udr_score([np.ones((50, 3)), np.zeros((50, 2))]), 0)
    found = udr_score([CODE, -CODE, CODE * 2, np.zeros_like(CODE)])
    assert found[3] == 0
    assert (found[:3] > 0.9).all()
    np.testing.assert_array_equal(udr_score([CODE, CODE], active=[np.zeros(4, bool)] * 2), 0)
    np.testing.assert_array_equal(udr_score([CODE[:1], CODE[:1]]), 0)
    np.testing.assert_array_equal(udr_score([CODE[:, :0], CODE]), 0)


def test_latents_with_no_correlation_at_all() -> None:
    grid = np.stack([np.arange(40) % 4, np.arange(40) // 4 % 2], axis=1).astype(float)
    np.testing.assert_allclose(udr_score([grid[:, :1], grid[:, 1:]]), 0, atol=1e-12)


def test_order_of_rows_and_models_does_not_matter() -> None:
    models = [CODE @ RNG.normal(size=(4, 4)) for _ in range(4)]
    expected = udr_score(models)
    rows = RNG.permutation(len(CODE))
    np.testing.assert_allclose(udr_score([model[rows] for model in models]), expected)
    np.testing.assert_allclose(udr_score(models[::-1]), expected[::-1])


@pytest.mark.parametrize(
    ("models", "active", "message"),
    [
        ([CODE], None, "at least 2 models, got 1"),
        ([CODE, CODE[:-1]], None, "same images"),
        ([CODE, CODE[:, 0]], None, r"got \(2000,\)"),
        ([CODE[:0], CODE[:0]], None, r"got \(0, 4\)"),
        ([CODE, np.full_like(CODE, np.nan)], None, "not finite"),
        ([CODE, CODE], [np.ones(4, bool)], "active must be"),
        ([CODE, CODE], [np.ones(4, bool), np.ones(3, bool)], "active must be"),
        ([CODE, CODE], [np.ones(4), np.ones(4)], "float64"),
    ],
)
def test_bad_input_is_named(models: list[np.ndarray], active: list[np.ndarray] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        udr_score(models, active=active)
