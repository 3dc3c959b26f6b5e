"""Drawn rooms: one object before two walls, with the factors of 3D Shapes (Burgess, Kim 2018), which it is not.

The look is this project's own: the camera goes round the object by the orientation, so that the corner of the
room and the faces of a cube turn. Where rays hit is ray_cast.py's.
"""

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from jobs.data.sampling import permute
from jobs.data.sources.base import Factor, Sample
from jobs.data.sources.ray_casting import FULL, SHAPES, cast


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.linspace(low, high, count))


FACTORS = (
    Factor("floor_hue", _grid(0, 0.9, 10)),  # turns
    Factor("wall_hue", _grid(0, 0.9, 10)),
    Factor("object_hue", _grid(0, 0.9, 10)),
    Factor("scale", _grid(0.75, 1.25, 8)),
    Factor("shape", SHAPES),
    Factor("orientation", _grid(-30, 30, 15)),  # degrees that the camera goes round
)
SIZES = tuple(len(factor.values) for factor in FACTORS)
# Bump when a change of this file or of ray_cast.py changes the pixels.
_REVISION = 1
_CACHE = 2**28  # bytes of light that are kept; all of 64x64 is 12 MB
_BATCH = 2**20  # pixels that are colored at once


@dataclass(frozen=True)
class Rooms:
    """Source of the drawn rooms, (image_size, image_size, 3), last factor fastest.

    The factors are floor_hue, wall_hue, object_hue, scale, shape and orientation.

    Args:
        num_images: how many different ones of the 480,000 combinations, chosen at random; 0: all, in order.
        image_size: height and width, pixels.
    """

    num_images: int
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return FACTORS

    @property
    def num_samples(self) -> int:
        return self.num_images or math.prod(SIZES)

    @property
    def fingerprint(self) -> str:
        return f"{self!r}-{_REVISION}"

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        step = max(1, _BATCH // self.image_size**2)
        for begin in range(start, stop, step):
            number = np.arange(begin, min(begin + step, stop))
            if self.num_images:
                number = permute(number, math.prod(SIZES), 0)
            places = np.stack(np.unravel_index(number, SIZES), axis=1)
            for sample, place, image in zip(number, places, draw(places, self.image_size), strict=True):
                labels = {factor.name: int(index) for factor, index in zip(FACTORS, place, strict=True)}
                yield Sample(f"{sample:06d}", image, labels)


def draw(places: NDArray[np.int64], image_size: int) -> NDArray[np.uint8]:
    """Draw rooms.

    Args:
        places: (N, 6) indices into the values of the factors.
        image_size: height and width, pixels.

    Returns:
        (N, image_size, image_size, 3) uint8.
    """
    light = np.stack([_light(image_size)(*place) for place in places[:, 3:].tolist()]).astype(np.int32)
    colors = _colors()[places[:, :3]]  # (N, parts, 3)
    # Whole numbers, so that the order of the sum cannot matter.
    image = np.full((*light.shape[:3], 3), FULL // 2, np.int32)
    for part in range(3):
        image += light[..., part, None] * colors[:, None, None, part]
    return (image // FULL).astype(np.uint8)


@cache
def _light(image_size: int) -> Callable[[int, int, int], NDArray[np.uint16]]:
    """`light_of` for one image size, which remembers as many results as fit."""
    return lru_cache(maxsize=max(1, _CACHE // (6 * image_size**2)))(partial(light_of, image_size))


def light_of(image_size: int, scale: int, shape: int, orientation: int) -> NDArray[np.uint16]:
    """Light from the floor, the walls and the object to each pixel, (size, size, 3) uint16, 4096 at most in all.

    Args:
        image_size: height and width, pixels.
        scale: index into the values of the factor, like the next two.
        shape: what is in the room.
        orientation: where the camera stands.
    """
    return cast(image_size, float(FACTORS[3].values[scale]), SHAPES[shape], float(FACTORS[5].values[orientation]))


@cache
def _colors() -> NDArray[np.int32]:
    """Red, green and blue of each hue, (10, 3), 0..255."""
    hues = FACTORS[0].values
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(float(hue), 0.8, 1)] for hue in hues], np.int32)
