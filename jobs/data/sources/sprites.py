"""Drawn sprites: a near-exact re-render of dSprites, never to be reported as dSprites itself.

The geometry was fitted to frames that the publisher shows: most images differ from the published ones in about a pixel
at the outline. Factors, sizes and order are those of dSprites.

References:
    Matthey, Higgins, Hassabis, Lerchner: dSprites: Disentanglement testing Sprites dataset, 2017.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.data.sources.base import BaseDataConfig, DrawnGrid, Factor, even_grid

FACTORS = (
    Factor("shape", ("square", "ellipse", "heart")),
    Factor("scale", even_grid(0.5, 1, 6)),
    Factor("orientation", even_grid(0, 2 * math.pi, 40)),  # radians, counter-clockwise; the last equals the first
    Factor("x", even_grid(0, 1, 32)),  # to the right
    Factor("y", even_grid(0, 1, 32)),  # downwards
)
SIZES = tuple(len(factor.values) for factor in FACTORS)
SIZE = 64
# Sines and cosines differ in the last bit from machine to machine, sums and products do not.
_DECIMALS = 7
_HEART_CORNERS = 96


class SpritesConfig(BaseDataConfig):
    """Drawn sprites like those of dSprites: close, but not to be reported as dSprites."""

    name: Literal["sprites"] = "sprites"
    num_images: int = Field(
        0, ge=0, le=737_280, description="size of a random subset of the 737,280 combinations; 0: all"
    )

    def open(self) -> "Sprites":
        return Sprites(self.num_images)


@dataclass(frozen=True)
class Sprites(DrawnGrid):
    """Source of the drawn sprites, 64x64x1 of 0 and 255, with the factors, order and sample numbers of dSprites."""

    image_size, channels = SIZE, 1
    factors = FACTORS
    revision = 1

    def draw(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return draw(indices)


def draw(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return sprites, white on black, not anti-aliased, (N, 64, 64, 1) uint8, for (N, 5) indices into the values."""
    shape, scale, orientation, x, y = indices.T
    corners = _outlines()[shape] * np.take(FACTORS[1].values, scale)[:, None, None]
    cos, sin = (table[orientation, None] for table in _rotations())
    across = 16 + 32 * np.take(FACTORS[3].values, x)[:, None] + cos * corners[..., 0] + sin * corners[..., 1]
    down = 16 + 32 * np.take(FACTORS[4].values, y)[:, None] + cos * corners[..., 1] - sin * corners[..., 0]
    return fill_polygons(across, down)


def fill_polygons(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return polygons filled by the even-odd rule, sampled at the pixels' centers, (N, 64, 64, 1) uint8 of 0 and 255.

    Columns x and rows y of the corners, (N, K), are in pixels from the left and the upper edge, inside the image.
    """
    polygons, corners = x.shape
    next_x, next_y = np.roll(x, -1, 1).ravel(), np.roll(y, -1, 1).ravel()
    x, y = x.ravel(), y.ravel()
    # Each edge crosses the center lines of the rows first..last-1.
    first = np.ceil(np.minimum(y, next_y) - 0.5).astype(np.int64)
    count = np.ceil(np.maximum(y, next_y) - 0.5).astype(np.int64) - first
    edge = np.repeat(np.arange(len(x)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope
    column = np.ceil(crossing - 0.5).astype(np.int64)  # the first center that is not left of it
    position = (edge // corners * SIZE + row) * (SIZE + 1) + column
    crossings = np.bincount(position, minlength=polygons * SIZE * (SIZE + 1)).astype(np.uint8)
    inside = np.bitwise_xor.accumulate(crossings.reshape(polygons, SIZE, SIZE + 1) & 1, axis=2)
    return inside[..., :SIZE, None] * np.uint8(255)


@cache
def _rotations() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosine and sine of each orientation."""
    angle = np.linspace(0, 2 * math.pi, SIZES[2])
    return np.cos(angle).round(_DECIMALS), np.sin(angle).round(_DECIMALS)


@cache
def _outlines() -> NDArray[np.float64]:
    """Return corners at scale 1, pixels right of and below the center, (3, corners, 2), padded by empty edges."""
    square = 9.6 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    ellipse = np.stack([12.8 * np.cos(angle), 7.3 * np.sin(angle)], axis=1)
    t = np.linspace(0, 2 * math.pi, _HEART_CORNERS, endpoint=False)
    across = 10.75150618 * np.sin(t) ** 3 - 1.17987368 * np.sin(t)
    harmonics = 8.60020365 * np.cos(t) - 3.85598764 * np.cos(2 * t) - 1.51716517 * np.cos(3 * t)
    heart = np.stack([across, -(0.99664048 + harmonics - 0.82046516 * np.cos(4 * t))], axis=1)
    shapes = (square, ellipse, heart)
    padded = [np.pad(shape, ((0, _HEART_CORNERS - len(shape)), (0, 0)), mode="edge") for shape in shapes]
    return np.stack(padded).round(_DECIMALS)
