"""Drawn rooms: one object before two walls, with the factors of 3D Shapes, which this dataset is not.

The look is this project's own: the orientation moves the camera around the object, so that the corner of the walls and
the faces of a cube turn. `ray_casting.py` computes where rays hit.

References:
    Burgess, Kim: 3D Shapes Dataset, 2018.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.data.sources.base import BaseDataConfig, DrawnGrid, Factor, ImageSize, even_grid
from jobs.data.sources.ray_casting import FULL, SHAPES, cast_light

FACTORS = (
    Factor("floor_hue", even_grid(0, 0.9, 10)),  # turns
    Factor("wall_hue", even_grid(0, 0.9, 10)),
    Factor("object_hue", even_grid(0, 0.9, 10)),
    Factor("scale", even_grid(0.75, 1.25, 8)),
    Factor("shape", SHAPES),
    Factor("orientation", even_grid(-30, 30, 15)),  # degrees of the camera around the object
)
SIZES = tuple(len(factor.values) for factor in FACTORS)
_CACHE_BYTES = 2**28  # of light that is kept; all of 64x64 is 12 MB
_BATCH_PIXELS = 2**20


class RoomsConfig(BaseDataConfig):
    """Drawn rooms like those of 3DShapes, with the same factors."""

    name: Literal["rooms"] = "rooms"
    num_images: int = Field(
        30_000, ge=0, le=480_000, description="size of a random subset of the 480,000 combinations; 0: all"
    )
    image_size: ImageSize = Field(64, description="height and width in pixels")

    def open(self) -> "Rooms":
        return Rooms(self.num_images, self.image_size)


@dataclass(frozen=True)
class Rooms(DrawnGrid):
    """Source of the drawn rooms, (image_size, image_size, 3), last factor fastest."""

    image_size: int
    channels = 3
    factors = FACTORS
    revision = 1

    @property
    def batch_size(self) -> int:
        """Images that are drawn together."""
        return max(1, _BATCH_PIXELS // self.image_size**2)

    def draw(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return draw(indices, self.image_size)


def draw(indices: NDArray[np.int64], image_size: int) -> NDArray[np.uint8]:
    """Return rooms, (N, image_size, image_size, 3) uint8, for (N, 6) indices into the values of the factors."""
    light = np.stack([_light_cache(image_size)(*row) for row in indices[:, 3:].tolist()]).astype(np.int32)
    colors = _colors()[indices[:, :3]]  # (N, surfaces, 3)
    # Integers, so that the order of the sum cannot matter.
    image = np.full((*light.shape[:3], 3), FULL // 2, np.int32)
    for surface in range(3):
        image += light[..., surface, None] * colors[:, None, None, surface]
    return (image // FULL).astype(np.uint8)


@cache
def _light_cache(image_size: int) -> Callable[[int, int, int], NDArray[np.uint16]]:
    """Return `compute_light` for one image size, with a cache of as many results as fit."""
    return lru_cache(maxsize=max(1, _CACHE_BYTES // (6 * image_size**2)))(partial(compute_light, image_size))


def compute_light(image_size: int, scale: int, shape: int, orientation: int) -> NDArray[np.uint16]:
    """Return `cast_light`, (image_size, image_size, 3) uint16, for indices into the values of the factors."""
    return cast_light(image_size, float(FACTORS[3].values[scale]), SHAPES[shape], float(FACTORS[5].values[orientation]))


@cache
def _colors() -> NDArray[np.int32]:
    """Return red, green and blue of each hue, (10, 3), 0..255."""
    hues = FACTORS[0].values
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(float(hue), 0.8, 1)] for hue in hues], np.int32)
