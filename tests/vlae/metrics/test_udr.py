"""Ranking without factors: copies of one code, unrelated codes, and the published formula in loops."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from vlae.metrics.udr import udr_score

CODE = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)


def _by_the_formula(first: np.ndarray, second: np.ndarray) -> float:
    """UDR of a pair whose latents are all informative, entry by entry."""
    matrix = np.array([[abs(spearmanr(a, b).statistic) for b in second.T] for a in first.T])
    total = 0.0
    for b in range(matrix.shape[1]):
        total += matrix[:, b].max() ** 2 / matrix[:, b].sum()
    for a in range(matrix.shape[0]):
        total += matrix[a].max() ** 2 / matrix[a].sum()
    return total / sum(matrix.shape)


def test_udr_agrees_with_formula() -> None:
    """The metric is the published formula, entry by entry."""
    rng = np.random.default_rng(2)
    mixed = [CODE @ rng.normal(size=(4, size)) for size in (4, 3, 5)]
    models = [*mixed, np.round(CODE)]  # ties share their rank
    expected = []
    for i, model in enumerate(models):
        expected.append(np.median([_by_the_formula(model, other) for j, other in enumerate(models) if j != i]))
    np.testing.assert_allclose(udr_score(models), expected, atol=1e-9)


def test_udr_monotone_changes_do_not_matter() -> None:
    """Ranks see no monotone change; entries of independent latents are .02 by chance."""
    result = udr_score([CODE, -CODE[:, ::-1], np.exp(CODE)])
    assert result.shape == (3,)
    assert result.dtype == np.float64
    assert (result > 0.9).all()
    assert (result <= 1).all()
    np.testing.assert_allclose(udr_score([CODE[:, :1], -(CODE[:, :1] ** 3)]), 1)


def test_udr_rotated_code_ranks_below() -> None:
    """A rotated code ranks below the others, an unrelated one near 0."""
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    result = udr_score([CODE, CODE[:, ::-1], -CODE, CODE @ turn])
    assert result[3] < 0.5 < result[:3].min()
    unrelated = rng.normal(size=CODE.shape)
    assert udr_score([CODE, unrelated]).max() < 0.05


def test_udr_duplicated_latent_halves_its_strength() -> None:
    """Two copies of a latent have half the strength."""
    single, twice = CODE[:, :1], CODE[:, [0, 0]]
    # Per latent: 1/2 of the single one, whose row has two entries of 1, and 1 of each copy.
    np.testing.assert_allclose(udr_score([single, twice]), (0.5 + 1 + 1) / 3)


def test_udr_inactive_latents_are_left_out() -> None:
    """Inactive latents change nothing."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(2, *CODE.shape)).astype(np.float32)
    wide = [np.concatenate([CODE, 0.01 * noise[0]], axis=1), np.concatenate([0.01 * noise[1], CODE], axis=1)]
    expected = udr_score([CODE, CODE])
    np.testing.assert_allclose(udr_score(wide), expected)
    masks = [np.arange(8) < 4, np.arange(8) >= 4]
    np.testing.assert_allclose(udr_score([wide[0] * 1e3, wide[1]], active=masks), expected)
    assert udr_score(wide, active=[np.ones(8, bool)] * 2).max() < 0.6
    # A constant latent has no ranks, active or not.
    with_constant = np.column_stack([CODE, np.full(2000, 7)])
    np.testing.assert_allclose(udr_score([with_constant, CODE], active=[np.ones(5, bool), np.ones(4, bool)]), expected)


def test_udr_model_without_active_latents_is_zero() -> None:
    """A model without active latents scores 0."""
    np.testing.assert_array_equal(udr_score([np.ones((50, 3)), np.zeros((50, 2))]), 0)
    result = udr_score([CODE, -CODE, CODE * 2, np.zeros_like(CODE)])
    assert result[3] == 0
    assert (result[:3] > 0.9).all()
    np.testing.assert_array_equal(udr_score([CODE, CODE], active=[np.zeros(4, bool)] * 2), 0)
    np.testing.assert_array_equal(udr_score([CODE[:1], CODE[:1]]), 0)
    np.testing.assert_array_equal(udr_score([CODE[:, :0], CODE]), 0)


def test_udr_uncorrelated_latents_are_zero() -> None:
    """Exactly uncorrelated latents score 0."""
    grid = np.stack([np.arange(40) % 4, np.arange(40) // 4 % 2], axis=1).astype(float)
    np.testing.assert_allclose(udr_score([grid[:, :1], grid[:, 1:]]), 0, atol=1e-12)


def test_udr_order_of_rows_and_models_does_not_matter() -> None:
    """Neither the order of rows nor of models matters."""
    rng = np.random.default_rng(2)
    models = [CODE @ rng.normal(size=(4, 4)) for _ in range(4)]
    expected = udr_score(models)
    rows = rng.permutation(len(CODE))
    np.testing.assert_allclose(udr_score([model[rows] for model in models]), expected)
    np.testing.assert_allclose(udr_score(models[::-1]), expected[::-1])


@pytest.mark.parametrize(
    ("models", "active", "message"),
    [
        ([CODE], None, "model_codes.*1"),
        ([CODE, CODE[:-1]], None, "model_codes"),
        ([CODE, CODE[:, 0]], None, r"\(2000,\)"),
        ([CODE[:0], CODE[:0]], None, r"\(0, 4\)"),
        ([CODE, np.full_like(CODE, np.nan)], None, "codes"),
        ([CODE, CODE], [np.ones(4, bool)], "active"),
        ([CODE, CODE], [np.ones(4, bool), np.ones(3, bool)], "active"),
        ([CODE, CODE], [np.ones(4), np.ones(4)], "float64"),
    ],
)
def test_udr_invalid_input_raises(models: list[np.ndarray], active: list[np.ndarray] | None, message: str) -> None:
    """The error names the argument and its shape."""
    with pytest.raises(ValueError, match=message):
        udr_score(models, active=active)
