"""The interventional robustness score against the published computation, by hand, and on degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.irs import irs_score

GOLDEN = json.loads((Path(__file__).parent / "golden" / "irs.json").read_text())
FACTORS = np.random.default_rng(0).integers((3, 40), size=(3000, 2))
CODES = FACTORS + 0.1 * np.random.default_rng(1).normal(size=(3000, 2))


@pytest.mark.parametrize("name", NAMES)
def test_irs_representations_agree_with_published(name: str) -> None:
    """The metric agrees with the published computation on every representation."""
    data = representation(name)
    assert irs_score(data.train_codes, data.train_factors) == pytest.approx(GOLDEN[name]["train"], abs=1e-6)
    assert irs_score(data.test_codes, data.test_factors) == pytest.approx(GOLDEN[name]["test"], abs=1e-6)


def test_irs_agrees_with_formula() -> None:
    """Within a value of the factor both latents are uniform; the second does not depend on it."""
    steps = np.linspace(-1, 1, 201)
    factor = np.repeat([0, 1], 201)[:, None]
    codes = np.stack([10 * factor[:, 0] + np.tile(steps, 2), 3 * np.tile(steps, 2)], axis=1)
    assert irs_score(codes, factor, quantile=1) == pytest.approx((6 * (1 - 1 / 6) + 3 * 0) / 9)
    assert irs_score(codes, factor) == pytest.approx((6 * (1 - 0.99 / 6) + 3 * 0.01) / 9)
    assert irs_score(codes, factor, quantile=0) == pytest.approx(1)


def test_irs_values_in_one_bin_spread_the_code() -> None:
    """40 values in 20 bins: two neighbors each, half a step from their mean."""
    values = np.arange(40)[:, None]
    assert irs_score(values.astype(float), values) == pytest.approx(1 - 0.5 / 19.5)
    assert irs_score(values.astype(float), values, bins=40) == pytest.approx(1)
    assert irs_score(values.astype(float), values, bins=1) == pytest.approx(
        1 - np.quantile(abs(values - 19.5), 0.99) / 19.5
    )


def test_irs_skewed_latents_score_below_zero() -> None:
    """A latent that is skewed to opposite sides scores below 0."""
    first = np.repeat([0.0, 10.0], [9, 1])
    codes = np.concatenate([first, 10 - first])[:, None]
    assert irs_score(codes, np.repeat([0, 1], 10)[:, None], quantile=1) == pytest.approx(1 - 9 / 5)


def test_irs_noise_constants_and_scale() -> None:
    """Noise is near .3; constant latents and factors and a common scale do not matter."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(3000, 3))
    assert irs_score(noise, FACTORS) == pytest.approx(0.3, abs=0.1)
    result = irs_score(CODES, FACTORS)
    assert irs_score(1e-3 * CODES - 5, FACTORS) == pytest.approx(result)
    assert irs_score(np.column_stack([CODES, np.full(3000, 0.1)]), FACTORS) == result
    assert irs_score(CODES, np.column_stack([np.full(3000, 7), FACTORS])) == result
    assert irs_score(np.column_stack([1e6 * CODES[:, 0], noise]), FACTORS) > 0.8
    assert irs_score(np.full((3000, 2), 0.1, np.float32), FACTORS) == 0
    assert irs_score(CODES[:, :0], FACTORS) == 0
    assert np.isnan(irs_score(CODES, FACTORS[:, :1] * 0))
    assert np.isnan(irs_score(CODES[:1], FACTORS[:1]))
    assert irs_score(CODES[:2], np.arange(4).reshape(2, 2)) == 1


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (CODES[:9], {}, "codes, factors"),
        (CODES[:, 0], {}, "codes, factors"),
        (np.full((3000, 2), np.nan), {}, "codes"),
        (CODES, {"bins": 0}, "bins.*0"),
        (CODES, {"quantile": 1.1}, "quantile.*1.1"),
    ],
)
def test_irs_invalid_input_raises(codes: np.ndarray, change: dict[str, float], message: str) -> None:
    """The error names the argument and its shape or value."""
    with pytest.raises(ValueError, match=message):
        irs_score(codes, FACTORS, **change)
