"""InfoMEC against its definition by brute force, closed forms and constructed codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics.infomec import info_mec_scores

GOLDEN = json.loads((Path(__file__).parent / "golden" / "infomec.json").read_text())
FACTORS = np.random.default_rng(0).integers((3, 4), size=(500, 2))
NOISE = np.random.default_rng(1).normal(size=(500, 2))
CODES = FACTORS + 0.1 * NOISE
SCORES = ("infom", "infoc", "infoe")


@pytest.mark.parametrize("name", NAMES)
def test_infomec_representations_agree_with_reference(name: str) -> None:
    """The metrics agree with the definition by brute force on every representation."""
    data = representation(name)
    result = info_mec_scores(data.train_codes, data.train_factors)
    # Codes that are equal are ordered by noise, which moves the published estimate itself by .01.
    tolerance = 0.03 if name == "exact" else 0.005
    for score in SCORES:
        np.testing.assert_allclose(getattr(result, score), GOLDEN[name][score], atol=tolerance, err_msg=score)


def test_infom_agrees_with_true_information() -> None:
    """Two binary factors a and b, one latent 3 a + b + noise: InfoM from two integrals."""
    rng = np.random.default_rng(2)
    rows = 6000
    bits = rng.integers(0, 2, (rows, 2))
    code = (bits @ np.array([3, 1]) + rng.normal(0, 0.5, rows))[:, None]

    def information(groups: list[list[float]]) -> float:
        """I in nats between the latent and which of two equally likely groups of means it comes from."""

        def density(x: float) -> float:
            each = [float(norm.pdf(x, group, 0.5).mean()) for group in groups]
            middle = sum(each) / 2
            return sum(p * np.log(p / middle) / 2 for p in each if p > 0)

        return quad(density, -3, 7, limit=200)[0]

    first, second = information([[0, 1], [3, 4]]), information([[0, 3], [1, 4]])
    expected = 2 * max(first, second) / (first + second) - 1
    assert info_mec_scores(code, bits).infom == pytest.approx(expected, abs=0.03)


def test_infoe_agrees_with_flipped_bits() -> None:
    """Rows at +1 and -1 that flip with probability q: no classifier explains more than 1 - H(q) / log 2."""
    bits = np.arange(400)[:, None] % 2
    codes = np.where(np.arange(400)[:, None] < 80, 1 - bits, bits) * 2.0 - 1
    expected = 1 + (0.2 * np.log(0.2) + 0.8 * np.log(0.8)) / np.log(2)
    assert info_mec_scores(codes, bits).infoe == pytest.approx(expected, abs=1e-4)


def test_infomec_scale_order_and_names_do_not_matter() -> None:
    """Neither scale, order of latents nor names of values matter."""
    plain = info_mec_scores(CODES, FACTORS)
    for codes, factors in ((7 - 40 * CODES, FACTORS), (CODES[:, ::-1], FACTORS), (CODES, 5 * FACTORS[:, ::-1])):
        result = info_mec_scores(codes, factors)
        for score in SCORES:
            assert getattr(result, score) == pytest.approx(getattr(plain, score), abs=2e-3)


def test_infomec_small_latents_count_for_infoe_only() -> None:
    """The second factor is in a latent of small range: InfoM and InfoC do not see it, InfoE does."""
    result = info_mec_scores(CODES * np.array([1, 1e-3]), FACTORS)
    assert np.isnan(result.infoc)
    assert result.infom > 0.9
    assert result.infoe > 0.99


def test_infomec_constant_codes_or_factors_are_degenerate() -> None:
    """Constant codes score 0; with one factor InfoM is NaN, without factors all are."""
    constant = info_mec_scores(np.ones((500, 2)), FACTORS)
    assert (constant.infom, constant.infoc) == (0, 0)
    assert constant.infoe == pytest.approx(0, abs=0.01)
    padded = np.stack([FACTORS[:, 0], np.full(500, 3)], axis=1)
    single = info_mec_scores(CODES, padded)
    assert np.isnan(single.infom)
    assert np.isfinite([single.infoc, single.infoe]).all()
    for factors in (padded[:, 1:], np.arange(500)[:, None]):
        nothing = info_mec_scores(CODES, factors)
        assert np.isnan([nothing.infom, nothing.infoc, nothing.infoe]).all()


def test_infomec_few_rows_have_fewer_neighbors() -> None:
    """Fewer rows than neighbors padded give finite metrics."""
    codes = np.array([[0.0, 5.0], [0.1, 1.0], [3.0, 4.0], [3.1, 2.0], [9.0, 3.0]])
    result = info_mec_scores(codes, np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]))
    assert np.isfinite([result.infom, result.infoc, result.infoe]).all()


def test_infomec_seed_decides_and_invalid_input_raises() -> None:
    """The seed orders equal codes; the error names the argument."""
    repeated = FACTORS.astype(float)
    assert info_mec_scores(repeated, FACTORS, seed=1) == info_mec_scores(repeated, FACTORS, seed=1)
    assert info_mec_scores(repeated, FACTORS, seed=1) != info_mec_scores(repeated, FACTORS, seed=2)
    with pytest.raises(ValueError, match="codes, factors"):
        info_mec_scores(CODES[1:], FACTORS)
    with pytest.raises(ValueError, match="codes"):
        info_mec_scores(np.full((500, 2), np.inf), FACTORS)
    with pytest.raises(ValueError, match=r"neighbors.*0"):
        info_mec_scores(CODES, FACTORS, neighbors=0)
    with pytest.raises(ValueError, match=r"\(500, 0\)"):
        info_mec_scores(CODES[:, :0], FACTORS)


def test_infoe_of_an_uneven_factor_is_balanced() -> None:
    """Without information a balanced classifier says 1/2 to each value, which explains nothing of either."""
    uneven = (np.arange(400)[:, None] % 10 == 0).astype(int)
    assert info_mec_scores(np.ones((400, 2)), uneven).infoe == pytest.approx(0, abs=1e-6)
