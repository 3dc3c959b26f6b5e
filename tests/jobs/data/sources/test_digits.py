"""Test digit scenes: every factor has its effect, and any range can be drawn alone."""

import hashlib

import numpy as np
import pytest

from jobs.data.sources import digits, glyphs
from jobs.data.sources.digits import LIGHT, PALETTE, DigitScenes


def scenes(size: int = 32, channels: int = 3, seed: int = 0) -> DigitScenes:
    return DigitScenes(5000, size, channels, seed)


def test_digits_any_range_gives_equal_scenes() -> None:
    whole = list(scenes().read(0, 600))
    subset = list(scenes().read(250, 270))
    assert [sample.key for sample in subset] == [sample.key for sample in whole[250:270]]
    assert all(
        np.array_equal(a.image, b.image) and a.factors == b.factors for a, b in zip(subset, whole[250:270], strict=True)
    )
    assert len({sample.key for sample in whole}) == 600


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_digits_shape_and_factors_follow_settings(size: int, channels: int) -> None:
    source = scenes(size, channels)
    sample = next(source.read(7, 8))
    assert sample.image.shape == source.image_shape == (size, size, channels)
    assert sample.image.dtype == np.uint8
    assert list(sample.factors) == [factor.name for factor in source.factors]
    assert ("hue" in sample.factors) == (channels == 3)
    assert all(0 <= sample.factors[f.name] < len(f.values) for f in source.factors)


def test_digits_factors_are_uniform_and_independent() -> None:
    source = scenes()
    values = source.draw_factors(np.arange(20_000))
    for factor in source.factors:
        counts = np.bincount(values[factor.name], minlength=len(factor.values))
        expected = 20_000 / len(factor.values)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < len(factor.values) + 5 * np.sqrt(2 * len(factor.values)), factor.name
    correlation = np.corrcoef(np.stack([values[factor.name] for factor in source.factors]))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.04


def change(name: str, value: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same 50 scenes with one factor at 0 and at `value`."""
    source, index = scenes(), np.arange(50)
    factors = source.draw_factors(index)
    images = [source.render({**factors, name: np.full(50, v)}, index).astype(float) for v in (0, value)]
    return images[0], images[1]


@pytest.mark.parametrize("name", [factor.name for factor in scenes().factors])
def test_digits_every_factor_changes_the_image(name: str) -> None:
    before, after = change(name, 3)
    assert (np.abs(before - after).max((1, 2, 3)) > 8).mean() > 0.9


def test_digits_hues_keep_luminance() -> None:
    """Hues change the colors but not the luminance: the mean of the channels is constant."""
    for factor in PALETTE:
        before, after = change(factor.name, 3)
        assert np.abs(before.mean(-1) - after.mean(-1)).max() <= 1.0


def test_digits_light_equals_factor_values() -> None:
    source, index = scenes(channels=1), np.arange(40)
    factors = {**source.draw_factors(index), "neighbors": np.zeros(40, int)}
    luminance = np.take([float(v) for v in LIGHT[0].values], factors["luminance"])
    contrast = np.take([float(v) for v in LIGHT[1].values], factors["contrast"])
    corner = source.render(factors, index)[:, 0, 0, 0] / 255  # nothing is drawn there
    np.testing.assert_allclose(corner, luminance - contrast / 2, atol=0.003)


def test_digits_other_seed_gives_other_scenes() -> None:
    assert not np.array_equal(next(scenes(seed=0).read(0, 1)).image, next(scenes(seed=1).read(0, 1)).image)


def test_glyphs_changed_atlas_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs.load_atlas.cache_clear()
    monkeypatch.setattr(glyphs, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"glyphs\.png"):
        glyphs.load_atlas()
    glyphs.load_atlas.cache_clear()


def test_digits_pixels_and_factors_have_the_revision() -> None:
    """If a change of the code changes the digest, raise `_REVISION`, so that no shard of the old scenes is reused."""
    digest = hashlib.sha256(str(digits._REVISION).encode())
    for sample in scenes().read(0, 300):
        digest.update(sample.image.tobytes() + bytes(sample.factors.values()))
    assert digest.hexdigest() == "7ba977d0af0510f8d723835c1b9ee1d103e60e2ce98cc4574e40eab18520b232"


def test_digits_are_not_the_previous_ones_shifted() -> None:
    """Factors of a scene tell nothing of those of the next scene."""
    values = np.stack(list(scenes().draw_factors(np.arange(20_000)).values()))
    correlation = np.corrcoef(values[:, :-1], values[:, 1:])[: len(values), len(values) :]
    assert np.abs(correlation).max() < 0.04
