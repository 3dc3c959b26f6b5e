"""Drawn sprites: a near-exact re-render of dSprites, never to be reported as dSprites itself.

The geometry was fitted to frames that the publisher shows: most pictures differ from the published ones in a
pixel or so at the outline. Factors, sizes and order are those of dSprites (Matthey et al. 2017).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from jobs.data.sampling import permute
from jobs.data.sources.base import Factor, Sample


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.linspace(low, high, count))


FACTORS = (
    Factor("shape", ("square", "ellipse", "heart")),
    Factor("scale", _grid(0.5, 1, 6)),
    Factor("orientation", _grid(0, 2 * math.pi, 40)),  # radians, counter-clockwise; the last is the first
    Factor("x", _grid(0, 1, 32)),  # to the right
    Factor("y", _grid(0, 1, 32)),  # downwards
)
SIZES = tuple(len(factor.values) for factor in FACTORS)
SIZE = 64
# Bump when a change of this file changes the pixels.
_REVISION = 1
# Sines and cosines differ in the last bit from machine to machine, sums and products do not.
_DECIMALS = 7
_HEART = 96  # corners of its outline


@dataclass(frozen=True)
class Sprites:
    """Source of the drawn sprites, 64x64x1 of 0 and 255, in the order of dSprites: last factor fastest.

    The factors are shape, scale, orientation, x and y; the keys are the numbers of dSprites.

    Args:
        num_images: how many different ones of the 737,280 combinations, chosen at random; 0: all, in order.
    """

    num_images: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return SIZE, SIZE, 1

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
        for begin in range(start, stop, 256):
            number = np.arange(begin, min(begin + 256, stop))
            if self.num_images:
                number = permute(number, math.prod(SIZES), 0)
            places = np.stack(np.unravel_index(number, SIZES), axis=1)
            for sample, place, image in zip(number, places, draw(places), strict=True):
                labels = {factor.name: int(index) for factor, index in zip(FACTORS, place, strict=True)}
                yield Sample(f"{sample:06d}", image, labels)


def draw(places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw sprites, white on black, without anti-aliasing.

    Args:
        places: (N, 5) indices into the values of the factors.

    Returns:
        (N, 64, 64, 1) uint8 of 0 and 255.
    """
    shape, scale, orientation, x, y = places.T
    corners = _outlines()[shape] * np.take(FACTORS[1].values, scale)[:, None, None]
    cos, sin = (part[orientation, None] for part in _turns())
    across = 16 + 32 * np.take(FACTORS[3].values, x)[:, None] + cos * corners[..., 0] + sin * corners[..., 1]
    down = 16 + 32 * np.take(FACTORS[4].values, y)[:, None] + cos * corners[..., 1] - sin * corners[..., 0]
    return fill(across, down)


def fill(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Fill polygons by the even-odd rule, sampled at the centers of the pixels.

    Args:
        x: (N, K) columns of the corners, pixels from the left edge, inside the picture.
        y: (N, K) rows of the corners, pixels from the upper edge, inside the picture.

    Returns:
        (N, 64, 64, 1) uint8 of 0 and 255.
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
    place = (edge // corners * SIZE + row) * (SIZE + 1) + column
    crossings = np.bincount(place, minlength=polygons * SIZE * (SIZE + 1)).astype(np.uint8)
    inside = np.bitwise_xor.accumulate(crossings.reshape(polygons, SIZE, SIZE + 1) & 1, axis=2)
    return inside[..., :SIZE, None] * np.uint8(255)


@cache
def _turns() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of each orientation."""
    turn = np.linspace(0, 2 * math.pi, SIZES[2])
    return np.cos(turn).round(_DECIMALS), np.sin(turn).round(_DECIMALS)


@cache
def _outlines() -> NDArray[np.float64]:
    """Corners at scale 1, pixels to the right of and below the center, (3 shapes, corners, 2).

    The last corner of the simpler shapes is repeated: an edge without length crosses nothing.
    """
    square = 9.6 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    turn = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    ellipse = np.stack([12.8 * np.cos(turn), 7.3 * np.sin(turn)], axis=1)
    t = np.linspace(0, 2 * math.pi, _HEART, endpoint=False)
    across = 10.75150618 * np.sin(t) ** 3 - 1.17987368 * np.sin(t)
    harmonics = 8.60020365 * np.cos(t) - 3.85598764 * np.cos(2 * t) - 1.51716517 * np.cos(3 * t)
    heart = np.stack([across, -(0.99664048 + harmonics - 0.82046516 * np.cos(4 * t))], axis=1)
    padded = [np.pad(shape, ((0, _HEART - len(shape)), (0, 0)), mode="edge") for shape in (square, ellipse, heart)]
    return np.stack(padded).round(_DECIMALS)
