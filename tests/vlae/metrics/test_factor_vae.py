"""The FactorVAE score against the published protocol; a pool against new images; degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference.representations import NAMES, representation
from vlae.metrics._factor_sampling import EncodedPool, FreshImages
from vlae.metrics.factor_vae import factor_vae_score, factor_vae_score_from

GOLDEN = json.loads((Path(__file__).parent / "golden" / "factor_vae.json").read_text())
RNG = np.random.default_rng(0)
SIZES = np.array([3, 4, 6])
FACTORS = RNG.integers(SIZES, size=(4000, 3))
UNIT = 2 * FACTORS / (SIZES - 1) - 1
NOISE = RNG.normal(size=(4000, 6))
PERFECT = UNIT + 0.02 * NOISE[:, :3]
FEW = {"train_votes": 2000, "eval_votes": 2000}


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_published_protocol(name: str) -> None:
    data = representation(name)
    found = factor_vae_score(data.train_codes, data.train_factors, seed=0)
    assert found == pytest.approx(GOLDEN[name]["unit"], abs=0.05)
    if name != "scaled":  # the absolute threshold drops a live latent there
        assert found == pytest.approx(GOLDEN[name]["published"], abs=0.05)


@pytest.mark.parametrize("mix", [np.eye(3), np.ones((3, 1)), np.diag([1, 1, 0]), np.tril(np.ones((3, 3)))])
def test_a_pool_and_new_images_agree(mix: np.ndarray) -> None:
    noise = np.random.default_rng(1)

    def encode(images: np.ndarray) -> np.ndarray:
        return ((images / 255 - 0.5) @ mix + noise.normal(0, 0.1, (len(images), mix.shape[1]))).astype(np.float32)

    def sample(factors: np.ndarray) -> np.ndarray:
        return (255 * factors / (SIZES - 1)).astype(np.uint8)

    fresh = factor_vae_score_from(FreshImages(encode, sample, SIZES), seed=0, **FEW)
    assert factor_vae_score(encode(sample(FACTORS)), FACTORS, seed=0, **FEW) == pytest.approx(fresh, abs=0.05)


def test_batches_and_pairs_share_what_is_fixed() -> None:
    """With the factors as the codes: one value along a batch, drawn as often as the pool holds it; all of it random."""
    rng = np.random.default_rng(2)
    uneven = np.where(rng.random((4000, 1)) < 0.1, 7, FACTORS[:, :1] % 2)
    still = np.column_stack([np.zeros(4000, int), FACTORS, uneven])
    fixed = rng.integers(4, size=3000)
    pool = EncodedPool(still.astype(float), still)
    fresh = FreshImages(lambda images: images.astype(float), lambda factors: factors, [1, *SIZES, 5])
    for source in (pool, fresh):
        assert source.factors == 4
        batches, (first, second) = source.batches(fixed, 5, rng), source.pairs(fixed, rng)
        groups = np.arange(len(fixed))
        assert (np.ptp(batches[fixed + 1, groups], axis=1) == 0).all()
        assert (first[fixed + 1, groups] == second[fixed + 1, groups]).all()
        assert (first[1] == second[1])[fixed == 1].mean() == pytest.approx(1 / 3, abs=0.06)
        assert np.unique(batches[3][fixed == 1], return_counts=True)[1] == pytest.approx(
            (fixed == 1).sum() * 5 / 6, 0.1
        )
    assert (pool.batches(fixed, 2, rng)[4, fixed == 3, 0] == 7).mean() == pytest.approx(0.1, abs=0.04)


def test_a_value_of_one_row_is_never_drawn() -> None:
    """A row beside itself differs in nothing, whatever the code."""
    rows = np.arange(6)
    factors = np.array([[0, 0, 1, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]]).T
    pool = EncodedPool(rows[:, None].astype(float), factors)
    assert pool.factors == 1
    first, second = pool.pairs(np.zeros(100, int), np.random.default_rng(0))
    assert {(int(a), int(b)) for a, b in zip(first[0], second[0], strict=True)} == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert np.isnan(factor_vae_score(rows[:, None].astype(float), factors, seed=0))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e25])
def test_constant_latents_are_dead_at_any_scale(scale: float) -> None:
    rounded = 1 / 3 + 6e-8 * (NOISE[:, :1] > 0)
    codes = scale * np.concatenate([np.full((4000, 2), 0.1), rounded, PERFECT], axis=1)
    assert factor_vae_score(codes.astype(np.float32), FACTORS, seed=0, **FEW) == 1
    assert factor_vae_score(codes[:, :3], FACTORS, seed=0) == 0


def test_small_latents_live_if_they_hold_a_factor() -> None:
    """By their scale alone, noise that sleeps and a factor look the same."""
    sleeping = np.column_stack([PERFECT[:, 1:], 1e-3 * NOISE[:, 3:]])
    alone = factor_vae_score(PERFECT[:, 1:], FACTORS, seed=0, **FEW)
    assert factor_vae_score(sleeping, FACTORS, seed=0, **FEW) == alone < 0.7
    assert factor_vae_score(np.column_stack([1e-3 * PERFECT[:, :1], sleeping]), FACTORS, seed=0, **FEW) == 1


def test_active_decides_which_latents_live() -> None:
    codes = np.column_stack([0.01 * PERFECT[:, 0], PERFECT[:, 1:], np.zeros(4000)])
    found = factor_vae_score(codes, FACTORS, seed=0, active=np.array([False, True, True, True]), **FEW)
    assert found == factor_vae_score(PERFECT[:, 1:], FACTORS, seed=0, **FEW) < 0.7
    assert factor_vae_score(codes, FACTORS, seed=0, active=np.zeros(4, bool)) == 0
    with pytest.raises(ValueError, match=r"active must be \(4,\), got \(3,\)"):
        factor_vae_score(codes, FACTORS, seed=0, active=np.ones(3, bool))


def test_seeds_and_factors_that_do_not_vary() -> None:
    codes = PERFECT @ np.ones((3, 2)) + NOISE[:, :2]
    first, again, other = (factor_vae_score(codes, FACTORS, seed=seed, **FEW) for seed in (0, 0, 1))
    assert first == again != other
    padded = np.column_stack([FACTORS[:, :1], np.full(4000, 3), FACTORS[:, 1:]])
    assert factor_vae_score(codes, padded, seed=0, **FEW) == first
    assert np.isnan(factor_vae_score(codes, padded[:, :2], seed=0))
    assert np.isnan(factor_vae_score(codes[:1], FACTORS[:1], seed=0))
    tiny = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert factor_vae_score(tiny.astype(float), tiny, seed=0, **FEW) == 1
    assert 0 <= factor_vae_score(tiny.astype(float), tiny, seed=0, train_votes=1, eval_votes=1, batch=2) <= 1


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (PERFECT[:9], {}, "same N"),
        (PERFECT[:, 0], {}, "same N"),
        (PERFECT[:, :0], {}, r"at least one latent, got \(4000, 0\)"),
        (np.full((4000, 2), np.nan), {}, "not finite"),
        (PERFECT, {"train_votes": 0}, "got 0, 5000, 64"),
        (PERFECT, {"batch": 1}, "got 10000, 5000, 1"),
    ],
)
def test_bad_input_is_named(codes: np.ndarray, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factor_vae_score(codes, FACTORS, seed=0, **change)


def test_bad_encoders_are_named() -> None:
    with pytest.raises(ValueError, match=r"size of at least 1, got \(3, 0\)"):
        FreshImages(np.asarray, np.asarray, (3, 0))
    for wrong, message in ((lambda images: images[:-1], "same N"), (lambda images: images / np.nan, "not finite")):
        with pytest.raises(ValueError, match=message):
            factor_vae_score_from(FreshImages(wrong, np.asarray, (3, 3)), seed=0)
