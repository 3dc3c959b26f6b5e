"""Test that drawn sprites have the sizes and positions of their factors, and the same bytes on every machine."""

import hashlib
import math

import numpy as np
import pytest

from jobs.data.sources import sprites
from jobs.data.sources.sprites import FACTORS, SIZES, Sprites, draw, fill_polygons

SQUARE, ELLIPSE, HEART = range(3)


def picture(shape: int, scale: int = 5, orientation: int = 0, x: int = 15, y: int = 15) -> np.ndarray:
    return draw(np.array([[shape, scale, orientation, x, y]]))[0, ..., 0] > 0


def random_sprites(shape: int, scale: int, count: int = 300) -> np.ndarray:
    """Return indices of sprites of one shape and size with random orientation and position."""
    rest = np.random.default_rng(0).integers(0, SIZES[2:], (count, 3))
    return np.column_stack([np.full(count, shape), np.full(count, scale), rest])


def test_sprites_sizes_and_order_equal_dsprites() -> None:
    source = Sprites(0)
    assert [len(factor.values) for factor in source.factors] == [3, 6, 40, 32, 32]
    assert (source.num_samples, source.image_shape, source.sequential) == (737_280, (64, 64, 1), False)
    first, second, last = (next(source.read(number, number + 1)) for number in (0, 1, 737_279))
    assert list(first.factors.items()) == [("shape", 0), ("scale", 0), ("orientation", 0), ("x", 0), ("y", 0)]
    assert second.factors["y"] == 1
    assert list(last.factors.values()) == [2, 5, 39, 31, 31]
    assert set(np.unique(last.image)) == {0, 255}


def test_sprites_any_range_gives_equal_images() -> None:
    source = Sprites(0)
    whole = list(source.read(400_000, 400_600))
    joined = [sample for start in range(400_000, 400_600, 150) for sample in source.read(start, start + 150)]
    assert [(a.key, a.factors) for a in joined] == [(b.key, b.factors) for b in whole]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(joined, whole, strict=True))


def test_sprites_subset_has_no_duplicates() -> None:
    subset = list(Sprites(3000).read(0, 3000))
    keys = {sample.key for sample in subset}
    assert len(keys) == 3000
    assert len({tuple(sample.factors.values()) for sample in subset}) == 3000
    for factor in FACTORS:  # it is spread over all values
        counts = np.bincount([sample.factors[factor.name] for sample in subset], minlength=len(factor.values))
        assert counts.min() > 0.5 * 3000 / len(factor.values)
    same = next(Sprites(0).read(int(subset[7].key), int(subset[7].key) + 1))
    assert (same.key, same.factors) == (subset[7].key, subset[7].factors)
    np.testing.assert_array_equal(same.image, subset[7].image)
    assert Sprites(3000).fingerprint != Sprites(0).fingerprint


@pytest.mark.parametrize("scale", [0, 3, 5])
def test_sprites_area_equals_geometry(scale: int) -> None:
    size = FACTORS[1].values[scale]
    expected = {
        SQUARE: (2 * 9.6 * size) ** 2,
        # A polygon of 24 corners inside the ellipse.
        ELLIPSE: math.pi * 12.8 * 7.3 * size**2 * math.sin(math.pi / 12) / (math.pi / 12),
    }
    for shape, area in expected.items():
        areas = (draw(random_sprites(shape, scale)) > 0).sum((1, 2, 3))
        assert areas.mean() == pytest.approx(area, rel=0.01)
        assert np.abs(areas - area).max() < 4 * math.sqrt(area)


def test_sprites_square_has_expected_side() -> None:
    for scale, size in enumerate(FACTORS[1].values):
        rows, columns = np.nonzero(picture(SQUARE, scale))
        for extent in (np.ptp(rows) + 1, np.ptp(columns) + 1):
            assert abs(extent - 19.2 * size) <= 1


def test_sprites_heart_has_expected_extent() -> None:
    """The tip is 10.8 px below the center; across, the heart spans twice 9.6 px."""
    middle = 16 + 15 * 32 / 31  # almost the center of a pixel, as the pointed tip needs
    for scale, size in enumerate(FACTORS[1].values):
        rows, columns = np.nonzero(picture(HEART, scale, x=15, y=31))
        assert abs(rows.max() + 0.5 - (48 + 10.76 * size)) <= 1
        assert abs(columns.min() + 0.5 - (middle - 9.57 * size)) <= 1
        assert abs(columns.max() + 0.5 - (middle + 9.57 * size)) <= 1
        np.testing.assert_array_equal(picture(HEART, scale, x=0)[:, :32], picture(HEART, scale, x=0)[:, 31::-1])


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_sprites_position_moves_center(shape: int) -> None:
    step = 32 / 31
    centers = [np.argwhere(picture(shape, x=x, y=y)).mean(0) for x, y in ((3, 5), (23, 5), (3, 30))]
    np.testing.assert_allclose(centers[1] - centers[0], [0, 20 * step], atol=0.5)
    np.testing.assert_allclose(centers[2] - centers[0], [25 * step, 0], atol=0.5)
    if shape != HEART:  # whose center of mass is above its center
        np.testing.assert_allclose(centers[0] + 0.5, [16 + 5 * step, 16 + 3 * step], atol=0.5)


def test_sprites_orientation_is_counter_clockwise() -> None:
    """The heart's tip points down at first, with the notch opposite."""
    middle = 16 + 15 * 32 / 31
    for orientation, turn in enumerate(FACTORS[2].values):
        image = picture(HEART, orientation=orientation)
        for reach, lit in ((8, True), (-7, False)):
            assert image[int(middle + reach * math.cos(turn)), int(middle + reach * math.sin(turn))] == lit


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_sprites_full_turn_equals_no_turn(shape: int) -> None:
    for scale in range(6):
        np.testing.assert_array_equal(picture(shape, scale), picture(shape, scale, orientation=39))
    others = {picture(shape, orientation=orientation).tobytes() for orientation in range(39)}
    assert len(others) >= 19  # the ellipse looks the same after half a turn, or almost


def test_fill_polygons_equals_even_odd_rule() -> None:
    """The independent answer counts the edges that a ray to the right crosses."""
    x, y = np.random.default_rng(1).uniform(1, 63, (2, 4, 9))
    center_y, center_x = np.mgrid[:64, :64] + 0.5
    for polygon, image in enumerate(fill_polygons(x, y)):
        inside = np.zeros((64, 64), bool)
        for a in range(9):
            (x1, y1), (x2, y2) = ((x[polygon, k], y[polygon, k]) for k in (a, (a + 1) % 9))
            at = x1 + (center_y - y1) * (x2 - x1) / (y2 - y1)
            inside ^= ((y1 > center_y) != (y2 > center_y)) & (at > center_x)
        np.testing.assert_array_equal(image[..., 0], inside * 255)


def test_sprites_pixels_equal_stored_hash() -> None:
    digest = hashlib.sha256(b"".join(sample.image.tobytes() for sample in Sprites(2000).read(0, 2000)))
    assert digest.hexdigest() == "88bbeb0b92913d9941f40c1f69c62997b37819c994f1f93d1f7c6e58a17482c9"


def test_sprites_tables_ignore_last_bits_of_sines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [array.copy() for array in (sprites._outlines(), *sprites._rotations())]
    for name in ("cos", "sin"):
        function = getattr(np, name)
        monkeypatch.setattr(np, name, lambda x, function=function: np.nextafter(function(x), 9))
    after = [sprites._outlines.__wrapped__(), *sprites._rotations.__wrapped__()]
    assert not np.array_equal(np.cos(1.0), math.cos(1.0))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
