"""Drawn rooms against the geometry of a pinhole camera, worked out here by other means than rays."""

import hashlib
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.spatial import ConvexHull

from jobs.data.sources import ray_casting as ray_cast
from jobs.data.sources.ray_casting import (
    AIM,
    CAPSULE,
    CUBE,
    CYLINDER,
    DISTANCE,
    FOCAL,
    FULL,
    HEIGHT,
    SHAPES,
    SPHERE,
    WALL,
)
from jobs.data.sources.rooms import FACTORS, SIZES, Rooms, draw, light_of

FLOOR, WALLS, BODY = range(3)
SCENES = [(0, 0), (3, 7), (7, 14), (5, 4)]  # scale and orientation


def change(factor: int, scene: tuple[int, ...], size: int = 64) -> np.ndarray:
    """Pixels that change with one hue of a scene (scale, shape, orientation)."""
    before = np.array([[1, 4, 6, *scene]])
    after = before.copy()
    after[0, factor] += 3
    return (draw(before, size) != draw(after, size))[0].any(-1)


def project(points: np.ndarray, orientation: int, size: int = 64) -> np.ndarray:
    """(column, row) of points (N, 3) in the image, pixels from its upper left corner."""
    turn = math.radians(45 + float(FACTORS[5].values[orientation]))
    eye = np.array([DISTANCE * math.cos(turn), HEIGHT, DISTANCE * math.sin(turn)])
    forward = np.array([0, AIM, 0]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    seen = (points - eye) @ np.stack([right, -np.cross(right, forward), forward]).T
    return (seen[:, :2] / seen[:, 2:] * FOCAL + 1) * size / 2


def surface(shape: str, scale: float) -> np.ndarray:
    """Points all over the surface of a body, (N, 3)."""
    turn, rise = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 2 * np.pi, 90), np.linspace(-1, 1, 61)))
    across, up = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], 1), np.array([0, 1, 0])
    ball = across * np.sqrt(1 - rise**2)[:, None] + rise[:, None] * up
    if shape == "cube":
        return CUBE * scale * (np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, 8).T + up)
    if shape == "sphere":
        return SPHERE * scale * (ball + up)
    if shape == "cylinder":
        return scale * np.concatenate([CYLINDER[0] * across + height * up for height in (0, CYLINDER[1])])
    radius, height = CAPSULE
    return scale * np.concatenate([radius * ball + center * up for center in (radius, height - radius)])


def hull(points: np.ndarray, size: int = 64) -> np.ndarray:
    """Pixels whose center is inside the convex hull of points (N, 2)."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    sides = ConvexHull(points).equations
    return (sides[:, 0] * columns[..., None] + sides[:, 1] * rows[..., None] + sides[:, 2] <= 0).all(-1)


def assert_same_within_a_pixel(found: np.ndarray, expected: np.ndarray) -> None:
    block = np.ones((3, 3), bool)
    assert expected.sum() > 50
    assert not (found & ~binary_dilation(expected, block)).any()
    assert not (binary_erosion(expected, block, border_value=1) & ~found).any()


def test_sizes_and_order_are_those_of_3d_shapes() -> None:
    source = Rooms(0, 64)
    assert [(factor.name, len(factor.values)) for factor in source.factors] == [
        ("floor_hue", 10),
        ("wall_hue", 10),
        ("object_hue", 10),
        ("scale", 8),
        ("shape", 4),
        ("orientation", 15),
    ]
    assert (source.num_samples, source.image_shape, source.sequential) == (480_000, (64, 64, 3), False)
    second = next(source.read(1, 2))
    assert list(second.factors.values()) == [0, 0, 0, 0, 0, 1]
    assert list(next(source.read(479_999, 480_000)).factors.values()) == [9, 9, 9, 7, 3, 14]


def test_any_range_gives_the_same_rooms() -> None:
    source = Rooms(0, 16)
    whole = list(source.read(1000, 1300))
    parts = [sample for start in (1000, 1100, 1200) for sample in source.read(start, start + 100)]
    assert [(a.key, a.factors) for a in parts] == [(b.key, b.factors) for b in whole]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(parts, whole, strict=True))


def test_a_subset_repeats_nothing() -> None:
    subset = list(Rooms(1500, 8).read(0, 1500))
    assert len({sample.key for sample in subset}) == len({tuple(s.factors.values()) for s in subset}) == 1500
    same = next(Rooms(0, 8).read(int(subset[9].key), int(subset[9].key) + 1))
    assert (same.key, same.factors) == (subset[9].key, subset[9].factors)
    np.testing.assert_array_equal(same.image, subset[9].image)
    prints = {Rooms(1500, 8).fingerprint, Rooms(0, 8).fingerprint, Rooms(0, 64).fingerprint}
    assert len(prints) == 3


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize(("scale", "orientation"), SCENES)
def test_the_object_is_where_geometry_has_it(shape: int, scale: int, orientation: int) -> None:
    points = surface(SHAPES[shape], float(FACTORS[3].values[scale]))
    expected = hull(project(points, orientation))
    assert_same_within_a_pixel(change(BODY, (scale, shape, orientation)), expected)


@pytest.mark.parametrize("orientation", [0, 7, 12])
def test_the_floor_ends_at_the_walls(orientation: int) -> None:
    """The floor is a rhombus of which the picture shows the near part."""
    far = 2.3  # beyond the picture, and still before the camera
    ground = project(np.array([[x, 0, z] for x in (-WALL, far) for z in (-WALL, far)]), orientation)
    body = hull(project(surface("sphere", float(FACTORS[3].values[2])), orientation))
    floor = change(FLOOR, (2, 2, orientation))
    assert_same_within_a_pixel(floor | body, hull(ground) | body)
    assert_same_within_a_pixel(change(WALLS, (2, 2, orientation)) | body, ~hull(ground) | body)


@pytest.mark.parametrize("orientation", range(15))
def test_the_corner_turns_with_the_camera(orientation: int) -> None:
    corner = project(np.array([[-WALL, 1.2, -WALL]]), orientation, 128)[0]
    row = light_of(128, 0, 2, orientation)[int(corner[1]), :, WALLS].astype(int)
    assert abs(row.argmin() + 0.5 - corner[0]) <= 1.5  # it is darkest there
    assert row[-1] > 1.1 * row[0]  # one wall is brighter


@pytest.mark.parametrize("factor", [FLOOR, WALLS, BODY])
def test_a_hue_changes_its_own_part_only(factor: int) -> None:
    for scene in ((0, 0, 3), (7, 3, 11)):
        own = light_of(64, *scene)[..., factor] > 0
        changed = change(factor, scene)
        assert not (changed & ~own).any()
        assert changed.sum() > 0.97 * own.sum()  # what little light there is of it at an edge may round away


def test_hues_are_those_of_the_color_circle() -> None:
    """The brightest pixel of the floor is red at hue 0 and cyan at half a turn."""
    for hue, order in ((0, (0, 1, 2)), (5, (1, 2, 0))):
        image = draw(np.array([[hue, 3, 3, 0, 2, 7]]), 32)[0, -1].mean(0)
        assert image[order[0]] > 2 * image[order[2]]
        assert (image[order[1]] > 2 * image[order[2]]) == (hue == 5)


@pytest.mark.parametrize("shape", range(4))
def test_scale_is_seen(shape: int) -> None:
    areas = [(light_of(64, scale, shape, 7)[..., BODY] > 0).sum() for scale in range(8)]
    assert (np.diff(areas) > 10).all()


def test_shapes_are_told_apart_by_silhouette_and_shade() -> None:
    lights = [light_of(64, 4, shape, 9)[..., BODY].astype(int) for shape in range(4)]
    for a in range(4):
        assert np.ptp(lights[a][lights[a] > 0.3 * FULL]) > 0.2 * FULL  # no flat disc
        for b in range(a):
            assert (np.abs(lights[a] - lights[b]) > 0.1 * FULL).sum() > 150


def test_the_object_darkens_the_floor_it_stands_on() -> None:
    for shape in range(4):
        light = light_of(64, 4, shape, 7)
        column = light[:, 32, FLOOR].astype(int)
        foot = np.nonzero(light[:, 32, BODY])[0].max() + 1
        assert column[foot] < 0.8 * column[-1]


def test_light_is_never_more_than_full() -> None:
    lights = np.stack([light_of(32, scale, shape, o) for scale in (0, 7) for shape in range(4) for o in (0, 7, 14)])
    assert lights.sum(-1, dtype=int).max() <= FULL
    assert lights.sum(-1, dtype=int).min() > 0.15 * FULL  # every ray meets something


def test_sizes_agree() -> None:
    place = np.array([[2, 5, 8, 4, 3, 10]])
    large, small = draw(place, 128)[0].astype(float), draw(place, 32)[0].astype(float)
    assert np.abs(large.reshape(32, 4, 32, 4, 3).mean((1, 3)) - small).mean() < 2.5


def test_pixels_are_the_same_everywhere() -> None:
    digest = hashlib.sha256(b"".join(sample.image.tobytes() for sample in Rooms(200, 64).read(0, 200)))
    assert digest.hexdigest() == "2971f40fbbca4ffb715193e8df9ffb01f274a51722f72e74a0e54e7c99f63b98"


def test_last_bits_of_sines_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ray_cast.camera_rays(8, 17.142857, 0.5, 0.5)
    cos, sin = math.cos, math.sin
    monkeypatch.setattr(math, "cos", lambda x: math.nextafter(cos(x), 2))
    monkeypatch.setattr(math, "sin", lambda x: math.nextafter(sin(x), -2))
    there = ray_cast.camera_rays(8, 17.142857, 0.5, 0.5)
    assert here.eye == there.eye
    np.testing.assert_array_equal(here.direction, there.direction)
    assert math.prod(SIZES) == 480_000
