"""Test drawn rooms against the geometry of a pinhole camera, computed without rays."""

import hashlib
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.spatial import ConvexHull

from jobs.data.sources import ray_casting
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
from jobs.data.sources.rooms import FACTORS, SIZES, Rooms, compute_light, draw

FLOOR, WALLS, BODY = range(3)
SCENES = [(0, 0), (3, 7), (7, 14), (5, 4)]  # scale and orientation


def change(factor: int, scene: tuple[int, ...], size: int = 64) -> np.ndarray:
    """Return the pixels that change with one hue of a scene (scale, shape, orientation)."""
    before = np.array([[1, 4, 6, *scene]])
    after = before.copy()
    after[0, factor] += 3
    return (draw(before, size) != draw(after, size))[0].any(-1)


def project(points: np.ndarray, orientation: int, size: int = 64) -> np.ndarray:
    """Return (column, row) of points (N, 3) in the image, pixels from its upper left corner."""
    turn = math.radians(45 + float(FACTORS[5].values[orientation]))
    eye = np.array([DISTANCE * math.cos(turn), HEIGHT, DISTANCE * math.sin(turn)])
    forward = np.array([0, AIM, 0]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    visible = (points - eye) @ np.stack([right, -np.cross(right, forward), forward]).T
    return (visible[:, :2] / visible[:, 2:] * FOCAL + 1) * size / 2


def surface(shape: str, scale: float) -> np.ndarray:
    """Return points all over the surface of a body, (N, 3)."""
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
    """Return the pixels whose center is inside the convex hull of points (N, 2)."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    sides = ConvexHull(points).equations
    return (sides[:, 0] * columns[..., None] + sides[:, 1] * rows[..., None] + sides[:, 2] <= 0).all(-1)


def assert_same_within_a_pixel(actual: np.ndarray, expected: np.ndarray) -> None:
    block = np.ones((3, 3), bool)
    assert expected.sum() > 50
    assert not (actual & ~binary_dilation(expected, block)).any()
    assert not (binary_erosion(expected, block, border_value=1) & ~actual).any()


def test_rooms_sizes_and_order_equal_3d_shapes() -> None:
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


def test_rooms_any_range_gives_equal_images() -> None:
    source = Rooms(0, 16)
    whole = list(source.read(1000, 1300))
    joined = [sample for start in (1000, 1100, 1200) for sample in source.read(start, start + 100)]
    assert [(a.key, a.factors) for a in joined] == [(b.key, b.factors) for b in whole]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(joined, whole, strict=True))


def test_rooms_subset_has_no_duplicates() -> None:
    subset = list(Rooms(1500, 8).read(0, 1500))
    assert len({sample.key for sample in subset}) == len({tuple(s.factors.values()) for s in subset}) == 1500
    same = next(Rooms(0, 8).read(int(subset[9].key), int(subset[9].key) + 1))
    assert (same.key, same.factors) == (subset[9].key, subset[9].factors)
    np.testing.assert_array_equal(same.image, subset[9].image)
    prints = {Rooms(1500, 8).fingerprint, Rooms(0, 8).fingerprint, Rooms(0, 64).fingerprint}
    assert len(prints) == 3


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize(("scale", "orientation"), SCENES)
def test_rooms_object_equals_projected_hull(shape: int, scale: int, orientation: int) -> None:
    points = surface(SHAPES[shape], float(FACTORS[3].values[scale]))
    expected = hull(project(points, orientation))
    assert_same_within_a_pixel(change(BODY, (scale, shape, orientation)), expected)


@pytest.mark.parametrize("orientation", [0, 7, 12])
def test_rooms_floor_ends_at_walls(orientation: int) -> None:
    """The floor is a rhombus of which the image shows the near corner."""
    far = 2.3  # beyond the image, and still before the camera
    ground = project(np.array([[x, 0, z] for x in (-WALL, far) for z in (-WALL, far)]), orientation)
    body = hull(project(surface("sphere", float(FACTORS[3].values[2])), orientation))
    floor = change(FLOOR, (2, 2, orientation))
    assert_same_within_a_pixel(floor | body, hull(ground) | body)
    assert_same_within_a_pixel(change(WALLS, (2, 2, orientation)) | body, ~hull(ground) | body)


@pytest.mark.parametrize("orientation", range(15))
def test_rooms_corner_turns_with_camera(orientation: int) -> None:
    corner = project(np.array([[-WALL, 1.2, -WALL]]), orientation, 128)[0]
    row = compute_light(128, 0, 2, orientation)[int(corner[1]), :, WALLS].astype(int)
    assert abs(row.argmin() + 0.5 - corner[0]) <= 1.5  # it is darkest there
    assert row[-1] > 1.1 * row[0]  # one wall is brighter


@pytest.mark.parametrize("factor", [FLOOR, WALLS, BODY])
def test_rooms_hue_changes_only_its_surface(factor: int) -> None:
    for scene in ((0, 0, 3), (7, 3, 11)):
        own = compute_light(64, *scene)[..., factor] > 0
        changed = change(factor, scene)
        assert not (changed & ~own).any()
        assert changed.sum() > 0.97 * own.sum()  # faint light at an edge may round to zero


def test_rooms_hues_follow_color_circle() -> None:
    """The brightest pixel of the floor is red at hue 0 and cyan at half a turn."""
    for hue, order in ((0, (0, 1, 2)), (5, (1, 2, 0))):
        image = draw(np.array([[hue, 3, 3, 0, 2, 7]]), 32)[0, -1].mean(0)
        assert image[order[0]] > 2 * image[order[2]]
        assert (image[order[1]] > 2 * image[order[2]]) == (hue == 5)


@pytest.mark.parametrize("shape", range(4))
def test_rooms_larger_scale_covers_more_pixels(shape: int) -> None:
    areas = [(compute_light(64, scale, shape, 7)[..., BODY] > 0).sum() for scale in range(8)]
    assert (np.diff(areas) > 10).all()


def test_rooms_shapes_differ_in_outline_and_shade() -> None:
    lights = [compute_light(64, 4, shape, 9)[..., BODY].astype(int) for shape in range(4)]
    for a in range(4):
        assert np.ptp(lights[a][lights[a] > 0.3 * FULL]) > 0.2 * FULL  # no flat disc
        for b in range(a):
            assert (np.abs(lights[a] - lights[b]) > 0.1 * FULL).sum() > 150


def test_rooms_object_darkens_floor_below() -> None:
    for shape in range(4):
        light = compute_light(64, 4, shape, 7)
        column = light[:, 32, FLOOR].astype(int)
        foot = np.nonzero(light[:, 32, BODY])[0].max() + 1
        assert column[foot] < 0.8 * column[-1]


def test_rooms_light_is_within_range() -> None:
    lights = np.stack(
        [compute_light(32, scale, shape, o) for scale in (0, 7) for shape in range(4) for o in (0, 7, 14)]
    )
    assert lights.sum(-1, dtype=int).max() <= FULL
    assert lights.sum(-1, dtype=int).min() > 0.15 * FULL  # every ray meets something


def test_rooms_image_sizes_agree() -> None:
    indices = np.array([[2, 5, 8, 4, 3, 10]])
    large, small = draw(indices, 128)[0].astype(float), draw(indices, 32)[0].astype(float)
    assert np.abs(large.reshape(32, 4, 32, 4, 3).mean((1, 3)) - small).mean() < 2.5


def test_rooms_pixels_equal_stored_hash() -> None:
    digest = hashlib.sha256(b"".join(sample.image.tobytes() for sample in Rooms(200, 64).read(0, 200)))
    assert digest.hexdigest() == "2971f40fbbca4ffb715193e8df9ffb01f274a51722f72e74a0e54e7c99f63b98"


def test_camera_rays_ignore_last_bits_of_sines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ray_casting.camera_rays(8, 17.142857, 0.5, 0.5)
    cos, sin = math.cos, math.sin
    monkeypatch.setattr(math, "cos", lambda x: math.nextafter(cos(x), 2))
    monkeypatch.setattr(math, "sin", lambda x: math.nextafter(sin(x), -2))
    after = ray_casting.camera_rays(8, 17.142857, 0.5, 0.5)
    assert before.eye == after.eye
    np.testing.assert_array_equal(before.direction, after.direction)
    assert math.prod(SIZES) == 480_000
