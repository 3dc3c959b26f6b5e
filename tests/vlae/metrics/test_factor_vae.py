"""The FactorVAE metric against the published protocol, on a pool and on new images, and on degenerate input."""

import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks.reference.factor_vae as reference
from benchmarks.reference.representations import NAMES, NewImages, representation
from vlae.metrics._factor_sampling import PoolSampler
from vlae.metrics.factor_vae import factor_vae_score

GOLDEN = json.loads((Path(__file__).parent / "golden" / "factor_vae.json").read_text())
SIZES = np.array([3, 4, 6])
FACTORS = np.random.default_rng(0).integers(SIZES, size=(4000, 3))
UNIT = 2 * FACTORS / (SIZES - 1) - 1
NOISE = np.random.default_rng(1).normal(size=(4000, 6))
PERFECT = UNIT + 0.02 * NOISE[:, :3]
FEW = {"train_votes": 2000, "eval_votes": 2000}


@pytest.mark.parametrize("name", NAMES)
def test_factor_vae_representations_agree_with_published(name: str) -> None:
    """The metric agrees with the published protocol on every representation."""
    data = representation(name)
    result = factor_vae_score(data.train_codes, data.train_factors, seed=0)
    assert result == pytest.approx(GOLDEN[name]["unit"], abs=0.05)
    if name != "scaled":  # the absolute threshold drops an active latent
        assert result == pytest.approx(GOLDEN[name]["published"], abs=0.05)


@pytest.mark.parametrize("mix", [np.eye(3), np.ones((3, 1)), np.diag([1, 1, 0]), np.tril(np.ones((3, 3)))])
def test_factor_vae_pool_agrees_with_new_images(mix: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a pool give the metric of new images for every vote."""
    monkeypatch.setattr(reference, "TRAIN_VOTES", 2000)
    monkeypatch.setattr(reference, "EVAL_VOTES", 2000)
    images = NewImages(mix, 0.1)
    codes = images.encode(FACTORS, np.random.default_rng(3))
    assert factor_vae_score(codes, FACTORS, seed=0, **FEW) == pytest.approx(reference.factor_vae(images, 0), abs=0.05)


def test_pool_sampler_batches_and_pairs_share_fixed_factor() -> None:
    """With the factors as codes: one value along a batch, drawn as often as the pool has it, all else random."""
    rng = np.random.default_rng(2)
    uneven = np.where(rng.random((4000, 1)) < 0.1, 7, FACTORS[:, :1] % 2)
    padded = np.column_stack([np.zeros(4000, int), FACTORS, uneven])
    fixed = rng.integers(4, size=3000)
    pool = PoolSampler(padded.astype(float), padded)
    assert pool.num_factors == 4
    batches, (first, second) = pool.fixed_factor_batches(fixed, 5, rng), pool.fixed_factor_pairs(fixed, rng)
    groups = np.arange(len(fixed))
    assert (np.ptp(batches[fixed + 1, groups], axis=1) == 0).all()
    assert (first[fixed + 1, groups] == second[fixed + 1, groups]).all()
    assert (first[1] == second[1])[fixed == 1].mean() == pytest.approx(1 / 3, abs=0.06)
    assert np.unique(batches[3][fixed == 1], return_counts=True)[1] == pytest.approx((fixed == 1).sum() * 5 / 6, 0.1)
    assert (pool.fixed_factor_batches(fixed, 2, rng)[4, fixed == 3, 0] == 7).mean() == pytest.approx(0.1, abs=0.04)


def test_pool_sampler_values_of_one_row_are_not_drawn() -> None:
    """A row beside itself has distance 0, whatever the code."""
    rows = np.arange(6)
    factors = np.array([[0, 0, 1, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]]).T
    pool = PoolSampler(rows[:, None].astype(float), factors)
    assert pool.num_factors == 1
    first, second = pool.fixed_factor_pairs(np.zeros(100, int), np.random.default_rng(0))
    assert {(int(a), int(b)) for a, b in zip(first[0], second[0], strict=True)} == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert np.isnan(factor_vae_score(rows[:, None].astype(float), factors, seed=0))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e25])
def test_factor_vae_constant_latents_are_inactive_at_any_scale(scale: float) -> None:
    """Latents that are constant but for rounding are inactive at any scale."""
    rounded = 1 / 3 + 6e-8 * (NOISE[:, :1] > 0)
    codes = scale * np.concatenate([np.full((4000, 2), 0.1), rounded, PERFECT], axis=1)
    assert factor_vae_score(codes.astype(np.float32), FACTORS, seed=0, **FEW) == 1
    assert factor_vae_score(codes[:, :3], FACTORS, seed=0) == 0


def test_factor_vae_small_latent_of_a_factor_is_active() -> None:
    """By their scale alone, small noise and a small factor look the same."""
    inactive = np.column_stack([PERFECT[:, 1:], 1e-3 * NOISE[:, 3:]])
    alone = factor_vae_score(PERFECT[:, 1:], FACTORS, seed=0, **FEW)
    assert factor_vae_score(inactive, FACTORS, seed=0, **FEW) == alone < 0.7
    assert factor_vae_score(np.column_stack([1e-3 * PERFECT[:, :1], inactive]), FACTORS, seed=0, **FEW) == 1


def test_factor_vae_active_mask_selects_latents() -> None:
    """The mask decides which latents are active."""
    codes = np.column_stack([0.01 * PERFECT[:, 0], PERFECT[:, 1:], np.zeros(4000)])
    result = factor_vae_score(codes, FACTORS, seed=0, active=np.array([False, True, True, True]), **FEW)
    assert result == factor_vae_score(PERFECT[:, 1:], FACTORS, seed=0, **FEW) < 0.7
    assert factor_vae_score(codes, FACTORS, seed=0, active=np.zeros(4, bool)) == 0
    with pytest.raises(ValueError, match=r"active.*\(3,\)"):
        factor_vae_score(codes, FACTORS, seed=0, active=np.ones(3, bool))


def test_factor_vae_constant_factors_are_left_out() -> None:
    """The seed decides, constant factors do not, and with fewer than two factors the metric is NaN."""
    codes = PERFECT @ np.ones((3, 2)) + NOISE[:, :2]
    first, again, other = (factor_vae_score(codes, FACTORS, seed=seed, **FEW) for seed in (0, 0, 1))
    assert first == again != other
    padded = np.column_stack([FACTORS[:, :1], np.full(4000, 3), FACTORS[:, 1:]])
    assert factor_vae_score(codes, padded, seed=0, **FEW) == first
    assert np.isnan(factor_vae_score(codes, padded[:, :2], seed=0))
    assert np.isnan(factor_vae_score(codes[:1], FACTORS[:1], seed=0))
    tiny = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert factor_vae_score(tiny.astype(float), tiny, seed=0, **FEW) == 1


@pytest.mark.parametrize(
    ("codes", "change", "message"),
    [
        (PERFECT[:9], {}, "codes, factors"),
        (PERFECT[:, 0], {}, "codes, factors"),
        (PERFECT[:, :0], {}, r"\(4000, 0\)"),
        (np.full((4000, 2), np.nan), {}, "codes"),
        (PERFECT, {"train_votes": 0}, "train_votes.* 0"),
        (PERFECT, {"batch": 1}, "batch.* 1"),
    ],
)
def test_factor_vae_invalid_input_raises(codes: np.ndarray, change: dict[str, int], message: str) -> None:
    """The error names the argument and its shape or value."""
    with pytest.raises(ValueError, match=message):
        factor_vae_score(codes, FACTORS, seed=0, **change)


def test_factor_vae_few_train_votes_do_not_fit_noise() -> None:
    """New votes judge the classifier: of its own votes, fewer than latents of noise, it names most."""
    codes = np.random.default_rng(2).normal(size=(4000, 60))
    for train_votes in (1, 20):
        result = factor_vae_score(codes, FACTORS, seed=0, train_votes=train_votes, eval_votes=2000)
        assert result == pytest.approx(1 / 3, abs=0.05)
