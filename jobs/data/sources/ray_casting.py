"""Cast rays against the floor, two walls and one object to shade the images of `rooms`.

The code uses only sums, products, quotients and square roots, which every machine rounds equally. Cosines and sines are
rounded to fewer decimals, because machines differ in their last bit. x and z run along the walls' normals, y upwards.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHAPES = ("cube", "cylinder", "sphere", "capsule")
FULL = 4096  # value of the brightest light
DISTANCE, HEIGHT = 4.6, 2.3  # of the camera from the axis of the object, and above the floor
AIM = 0.6  # height of the point that the camera looks at
FOCAL = 3.3  # half widths of the image: an angle of view of 34 degrees
WALL = 2.0  # distance of each wall from the axis
# Sizes at scale 1: half a side; radius and height; radius; radius and height.
CUBE, CYLINDER, SPHERE, CAPSULE = 0.52, (0.55, 1.1), 0.62, (0.45, 1.4)
# Samples in a pixel, from its left and upper edge. No two share a column or a row, so that edges are anti-aliased
# evenly.
_SAMPLES = ((1 / 8, 5 / 8), (3 / 8, 1 / 8), (5 / 8, 7 / 8), (7 / 8, 3 / 8))
_AMBIENT, _DIFFUSE = 0.4, 0.6
_LAMP = tuple(axis / math.sqrt(0.35**2 + 0.8**2 + 0.6**2) for axis in (0.35, 0.8, 0.6))  # direction to the lamp


class Rays(NamedTuple):
    """Rays from one eye at (x, y, z), with directions of any length, one array per axis."""

    eye: tuple[float, float, float]
    direction: tuple[Array, Array, Array]

    def at(self, axis: int, distance: Array | float) -> Array:
        """Return a coordinate of the points at `distance` lengths of the directions."""
        return self.eye[axis] + distance * self.direction[axis]


class Hit(NamedTuple):
    """First intersections: distance in lengths of the direction (infinite: a miss), unit normal, one array per axis."""

    distance: Array
    normal: tuple[Array, Array, Array]


def cast_light(image_size: int, scale: float, shape: str, orientation: float) -> NDArray[np.uint16]:
    """Return the light that each pixel receives from the floor, the walls and the object, in units of 1/4096.

    Args:
        image_size: Height and width in pixels.
        scale: Size of the object; at 1 its height and width are about 1.
        shape: One of `SHAPES`.
        orientation: Angle of the camera around the object in degrees.

    Returns:
        (image_size, image_size, 3) uint16; the three of a pixel sum to at most 4096.
    """
    total = np.zeros((3, image_size, image_size))
    for across, down in _SAMPLES:
        total += _shade(camera_rays(image_size, orientation, across, down), scale, shape)
    return np.rint(total * (FULL / len(_SAMPLES))).astype(np.uint16).transpose(1, 2, 0)


def camera_rays(image_size: int, orientation: float, across: float, down: float) -> Rays:
    """Return (image_size, image_size) rays through the points (column + across, row + down) of the image.

    `orientation` is in degrees; `across` and `down` are in 0..1 from the left and upper edge of a pixel.
    """
    angle = math.radians(45 + orientation)
    cos, sin = round(math.cos(angle), 9), round(math.sin(angle), 9)
    drop, slant = HEIGHT - AIM, math.sqrt(DISTANCE**2 + (HEIGHT - AIM) ** 2)
    ahead, below = DISTANCE / slant, drop / slant
    axis = np.arange(image_size)
    right = (2 * (axis + across) / image_size - 1)[None, :]
    up = (1 - 2 * (axis + down) / image_size)[:, None]
    forward = FOCAL * ahead + up * below  # along the floor, towards the object
    x = -cos * forward + sin * right
    z = -sin * forward - cos * right
    y = np.broadcast_to(up * ahead - FOCAL * below, x.shape)
    return Rays((DISTANCE * cos, HEIGHT, DISTANCE * sin), (x, y, z))


def _shade(rays: Rays, scale: float, shape: str) -> Array:
    """Return the light of one sample per pixel, (3 surfaces, size, size), 0..1; two of the three are zero."""
    # Rays that miss, or run along a surface, divide by zero or take roots of negative numbers: they count as infinite.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        body = _body(rays, scale, shape)
        floor = _ahead(-rays.eye[1] / rays.direction[1])
        walls = [_ahead((-WALL - rays.eye[axis]) / rays.direction[axis]) for axis in (0, 2)]
        distances = np.stack([floor, np.minimum(*walls), body.distance])
        x, y, z = (rays.at(axis, distances.min(0)) for axis in range(3))
        facing = sum(normal * axis for normal, axis in zip(body.normal, _LAMP, strict=True))
    near_left, near_right, near_floor = _crease(x + WALL, 0.25), _crease(z + WALL, 0.25), _crease(y, 0.25)
    left = (_AMBIENT + _DIFFUSE * _LAMP[0]) * near_right
    right = (_AMBIENT + _DIFFUSE * _LAMP[2]) * near_left
    light = (
        (_AMBIENT + _DIFFUSE * _LAMP[1]) * near_left * near_right * _crease(_beside(x, z, scale, shape), 0.25 * scale),
        np.where(walls[0] < walls[1], left, right) * near_floor,
        (_AMBIENT + _DIFFUSE * np.maximum(facing, 0)) * _crease(y, 0.1),
    )
    first = distances.argmin(0)
    return np.stack([np.where(first == surface, light[surface], 0) for surface in range(3)])


def _crease(distance: Array, width: float) -> Array:
    """Return the fraction of light that reaches a point near another surface, which hides the rest."""
    near = 1 / (1 + (distance / width) * (distance / width))
    return 1 - 0.45 * near * near


def _beside(x: Array, z: Array, scale: float, shape: str) -> Array:
    """Return the distance of points of the floor from the base of the object."""
    if shape == "cube":
        out_x, out_z = (np.maximum(np.abs(axis) - CUBE * scale, 0) for axis in (x, z))
        return np.asarray(np.sqrt(out_x * out_x + out_z * out_z))
    foot = {"cylinder": CYLINDER[0], "sphere": 0.4 * SPHERE, "capsule": 0.4 * CAPSULE[0]}[shape]
    return np.maximum(np.sqrt(x * x + z * z) - foot * scale, 0)


def _body(rays: Rays, scale: float, shape: str) -> Hit:
    if shape == "cube":
        return _box(rays, CUBE * scale)
    if shape == "sphere":
        return _ball(rays, SPHERE * scale, SPHERE * scale)
    radius, height = (size * scale for size in (CYLINDER if shape == "cylinder" else CAPSULE))
    if shape == "cylinder":
        return _nearest([_tube(rays, radius, 0, height), _disc(rays, radius, height)])
    low, high = radius, height - radius
    return _nearest([_tube(rays, radius, low, high), _ball(rays, radius, low), _ball(rays, radius, high)])


def _ahead(distance: Array) -> Array:
    """Return the distance where it is in front of the eye, else infinity."""
    return np.where(distance > 0, distance, np.inf)


def _nearest(hits: list[Hit]) -> Hit:
    first, *others = hits
    for other in others:
        closer = other.distance < first.distance
        normal = [np.where(closer, b, a) for a, b in zip(first.normal, other.normal, strict=True)]
        first = Hit(np.minimum(first.distance, other.distance), (normal[0], normal[1], normal[2]))
    return first


def _ball(rays: Rays, radius: float, height: float) -> Hit:
    """Intersect a sphere whose center is on the axis."""
    (x, y, z), (dx, dy, dz) = rays.eye, rays.direction
    y = y - height
    square, product = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz
    root = np.sqrt(product * product - square * (x * x + y * y + z * z - radius * radius))
    distance = _ahead((-product - root) / square)
    return Hit(
        distance,
        (rays.at(0, distance) / radius, (rays.at(1, distance) - height) / radius, rays.at(2, distance) / radius),
    )


def _tube(rays: Rays, radius: float, low: float, high: float) -> Hit:
    """Intersect the side of an upright cylinder around the axis."""
    (x, _, z), (dx, _, dz) = rays.eye, rays.direction
    square, product = dx * dx + dz * dz, x * dx + z * dz
    distance = _ahead((-product - np.sqrt(product * product - square * (x * x + z * z - radius * radius))) / square)
    height = rays.at(1, distance)
    distance = np.where((height >= low) & (height <= high), distance, np.inf)
    return Hit(distance, (rays.at(0, distance) / radius, np.zeros_like(distance), rays.at(2, distance) / radius))


def _disc(rays: Rays, radius: float, height: float) -> Hit:
    """Intersect the top of an upright cylinder around the axis."""
    distance = _ahead((height - rays.eye[1]) / rays.direction[1])
    x, z = rays.at(0, distance), rays.at(2, distance)
    distance = np.where(x * x + z * z <= radius * radius, distance, np.inf)
    flat = np.zeros_like(distance)
    return Hit(distance, (flat, flat + 1, flat))


def _box(rays: Rays, half: float) -> Hit:
    """Intersect a cube on the floor, its faces along the walls."""
    faces = [  # the three visible ones, because the eye is above the cube and farther out
        ((half if axis != 1 else 2 * half) - rays.eye[axis]) / rays.direction[axis] for axis in range(3)
    ]
    hits = []
    for axis, distance in enumerate(map(_ahead, faces)):
        inside = np.ones(distance.shape, bool)
        for other, (low, high) in enumerate(((-half, half), (0, 2 * half), (-half, half))):
            coordinate = rays.at(other, distance)
            inside &= (other == axis) | ((coordinate >= low) & (coordinate <= high))
        normal = [np.full(distance.shape, float(axis == other)) for other in range(3)]
        hits.append(Hit(np.where(inside, distance, np.inf), (normal[0], normal[1], normal[2])))
    return _nearest(hits)
