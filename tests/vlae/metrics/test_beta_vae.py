"""The BetaVAE metric against the published protocol, on a pool and on new images, and on degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks.reference.beta_vae as reference
from benchmarks.reference.representations import NAMES, NewImages, representation
from vlae.metrics.beta_vae import beta_vae_score

GOLDEN = json.loads((Path(__file__).parent / "golden" / "beta_vae.json").read_text())
SIZES = np.array([3, 4, 6])
FACTORS = np.random.default_rng(0).integers(SIZES, size=(4000, 3))
CODES = FACTORS / SIZES + 0.02 * np.random.default_rng(1).normal(size=(4000, 3))
FEW = {"train_votes": 2000, "eval_votes": 2000}


@pytest.mark.parametrize("name", NAMES)
def test_beta_vae_representations_agree_with_published_protocol(name: str) -> None:
    """The metric agrees with the published protocol on every representation."""
    data = representation(name)
    result = beta_vae_score(data.train_codes, data.train_factors, seed=0)
    assert result == pytest.approx(GOLDEN[name]["beta_vae"], abs=0.02)


@pytest.mark.parametrize("mix", [np.eye(3), np.ones((3, 1)), np.diag([1, 1, 0]), np.zeros((3, 2))])
def test_beta_vae_pool_agrees_with_new_images(mix: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a pool give the metric of new images for every vote."""
    monkeypatch.setattr(reference, "TRAIN_VOTES", 2000)
    monkeypatch.setattr(reference, "EVAL_VOTES", 2000)
    images = NewImages(mix, 0.3)
    codes = images.encode(FACTORS, np.random.default_rng(3))
    assert beta_vae_score(codes, FACTORS, seed=0, **FEW) == pytest.approx(reference.beta_vae(images, 0), abs=0.05)


def test_beta_vae_rare_values_score_at_chance() -> None:
    """Pairs of a row and itself would be a fifth of those that share a value of five rows."""
    factors = np.stack([np.arange(2000) % 2, np.arange(2000) // 5], axis=1)
    codes = np.random.default_rng(2).normal(size=(2000, 3))
    assert beta_vae_score(codes, factors, seed=0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_beta_vae_extreme_scales_converge(scale: float) -> None:
    """The penalty hides small latents: two remain to predict three factors, or none."""
    assert beta_vae_score(CODES * [scale, 1, 1], FACTORS, seed=0, **FEW) == pytest.approx(1, abs=0.01)
    expected = 1 if scale > 1 else 1 / 3
    assert beta_vae_score(CODES * scale, FACTORS, seed=0, **FEW) == pytest.approx(expected, abs=0.05)


def test_beta_vae_constant_codes_score_at_chance() -> None:
    """Constant codes are at chance, and a constant latent beside others changes nothing."""
    assert beta_vae_score(np.full((4000, 2), 0.1), FACTORS, seed=0) == pytest.approx(1 / 3, abs=0.03)
    with_constant = np.column_stack([np.zeros(4000), CODES])
    assert beta_vae_score(with_constant, FACTORS, seed=0, **FEW) == beta_vae_score(CODES, FACTORS, seed=0, **FEW)


def test_beta_vae_constant_factors_are_left_out() -> None:
    """The seed decides, constant factors do not, and with fewer than two factors the metric is NaN."""
    codes = CODES[:, :2] @ np.ones((2, 1))
    first, again, other = (beta_vae_score(codes, FACTORS, seed=seed, **FEW) for seed in (0, 0, 1))
    assert first == again != other
    padded = np.column_stack([FACTORS[:, :1], np.full(4000, 3), FACTORS[:, 1:]])
    assert beta_vae_score(codes, padded, seed=0, **FEW) == first
    assert np.isnan(beta_vae_score(codes, padded[:, :2], seed=0))
    assert np.isnan(beta_vae_score(codes[:1], FACTORS[:1], seed=0))
    tiny = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert beta_vae_score(tiny.astype(float), tiny, seed=0, **FEW) == 1


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (CODES[:9], {}, "codes, factors"),
        (CODES[:, 0], {}, "codes, factors"),
        (CODES[:, :0], {}, r"\(4000, 0\)"),
        (np.full((4000, 2), np.inf), {}, "codes"),
        (CODES, {"eval_votes": 0}, "eval_votes.* 0"),
        (CODES, {"pairs": 0}, "pairs.* 0"),
    ],
)
def test_beta_vae_invalid_input_raises(codes: np.ndarray, change: dict[str, int], message: str) -> None:
    """The error names the argument and its shape or value."""
    with pytest.raises(ValueError, match=message):
        beta_vae_score(codes, FACTORS, seed=0, **change)


def test_beta_vae_few_train_votes_do_not_fit_noise() -> None:
    """New votes judge the classifier: it separates its own votes, fewer than latents of noise, without an error."""
    codes = np.random.default_rng(2).normal(size=(4000, 60))
    result = beta_vae_score(codes, FACTORS, seed=0, train_votes=40, eval_votes=2000)
    assert result == pytest.approx(1 / 3, abs=0.05)
    assert beta_vae_score(codes, FACTORS, seed=0, train_votes=1, eval_votes=999, pairs=1) == pytest.approx(
        1 / 3, abs=0.06
    )
