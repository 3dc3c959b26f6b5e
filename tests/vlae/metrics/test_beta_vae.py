"""The BetaVAE score against the published protocol; a pool against new images; degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics._factor_sampling import FreshImages
from vlae.metrics.beta_vae import beta_vae_score, beta_vae_score_from

GOLDEN = json.loads((Path(__file__).parent / "golden" / "beta_vae.json").read_text())
RNG = np.random.default_rng(0)
SIZES = np.array([3, 4, 6])
FACTORS = RNG.integers(SIZES, size=(4000, 3))
CODES = FACTORS / SIZES + 0.02 * RNG.normal(size=(4000, 3))
FEW = {"train_votes": 2000, "eval_votes": 2000}


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_published_protocol(name: str) -> None:
    data = representation(name)
    found = beta_vae_score(data.train_codes, data.train_factors, seed=0)
    assert found == pytest.approx(GOLDEN[name]["beta_vae"], abs=0.02)


@pytest.mark.parametrize("mix", [np.eye(3), np.ones((3, 1)), np.diag([1, 1, 0]), np.zeros((3, 2))])
def test_a_pool_and_new_images_agree(mix: np.ndarray) -> None:
    noise = np.random.default_rng(1)

    def encode(images: np.ndarray) -> np.ndarray:
        return ((images / 255 - 0.5) @ mix + noise.normal(0, 0.3, (len(images), mix.shape[1]))).astype(np.float32)

    def sample(factors: np.ndarray) -> np.ndarray:
        return (255 * factors / (SIZES - 1)).astype(np.uint8)

    fresh = beta_vae_score_from(FreshImages(encode, sample, SIZES), seed=0, **FEW)
    assert beta_vae_score(encode(sample(FACTORS)), FACTORS, seed=0, **FEW) == pytest.approx(fresh, abs=0.05)


def test_rare_values_do_not_give_their_factor_away() -> None:
    """Pairs of a row and itself would be a fifth of those that share a value of five rows."""
    factors = np.stack([np.arange(2000) % 2, np.arange(2000) // 5], axis=1)
    codes = np.random.default_rng(2).normal(size=(2000, 3))
    assert beta_vae_score(codes, factors, seed=0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scales_are_fitted_without_complaint(scale: float) -> None:
    """What the penalty hides is lost, with two latents left to tell three factors by, or with none."""
    assert beta_vae_score(CODES * [scale, 1, 1], FACTORS, seed=0, **FEW) == pytest.approx(1, abs=0.01)
    expected = 1 if scale > 1 else 1 / 3
    assert beta_vae_score(CODES * scale, FACTORS, seed=0, **FEW) == pytest.approx(expected, abs=0.05)


def test_constant_codes_are_at_chance() -> None:
    assert beta_vae_score(np.full((4000, 2), 0.1), FACTORS, seed=0) == pytest.approx(1 / 3, abs=0.03)
    dead = np.column_stack([np.zeros(4000), CODES])
    assert beta_vae_score(dead, FACTORS, seed=0, **FEW) == beta_vae_score(CODES, FACTORS, seed=0, **FEW)


def test_seeds_and_factors_that_do_not_vary() -> None:
    codes = CODES[:, :2] @ np.ones((2, 1))
    first, again, other = (beta_vae_score(codes, FACTORS, seed=seed, **FEW) for seed in (0, 0, 1))
    assert first == again != other
    padded = np.column_stack([FACTORS[:, :1], np.full(4000, 3), FACTORS[:, 1:]])
    assert beta_vae_score(codes, padded, seed=0, **FEW) == first
    assert np.isnan(beta_vae_score(codes, padded[:, :2], seed=0))
    assert np.isnan(beta_vae_score(codes[:1], FACTORS[:1], seed=0))
    tiny = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert beta_vae_score(tiny.astype(float), tiny, seed=0, **FEW) == 1
    assert beta_vae_score(tiny.astype(float), tiny, seed=0, train_votes=1, eval_votes=1, pairs=1) in (0, 1)


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (CODES[:9], {}, "same N"),
        (CODES[:, 0], {}, "same N"),
        (CODES[:, :0], {}, r"at least one latent, got \(4000, 0\)"),
        (np.full((4000, 2), np.inf), {}, "not finite"),
        (CODES, {"eval_votes": 0}, "got 10000, 0, 64"),
        (CODES, {"pairs": 0}, "got 10000, 5000, 0"),
    ],
)
def test_bad_input_is_named(codes: np.ndarray, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beta_vae_score(codes, FACTORS, seed=0, **change)
