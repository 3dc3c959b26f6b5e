"""Digit scenes: colored digits on colored ground, with every factor known (an SVHN whose truth is at hand).

The palette (hue, hue offset, luminance, contrast) is the simple end of the hierarchy, the pose the
middle, digit and font the complex end. Factors are independent and uniform; sample i of a seed is a
pure function of (seed, i), so shards can be drawn in any order on any machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.data.sampling import splitmix64
from jobs.data.sources.base import Factor, Sample
from jobs.data.sources.glyphs import CELL, FACES, SHA256, load_atlas

Array = NDArray[np.float32]


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.linspace(low, high, count))


PALETTE = (
    Factor("hue", _grid(0, 1 - 1 / 12, 12)),  # of the ground, turns
    Factor("hue_offset", _grid(1 / 6, 5 / 6, 5)),  # of the digit against the ground, turns
)
LIGHT = (
    Factor("luminance", _grid(0.35, 0.65, 6)),  # mean of digit and ground
    Factor("contrast", (-0.6, -0.45, -0.3, 0.3, 0.45, 0.6)),  # digit minus ground
)
POSE = (
    Factor("scale", _grid(0.6, 0.85, 5)),  # height of the digit / height of the image
    Factor("rotation", _grid(-0.35, 0.35, 5)),  # radians
    Factor("shear", _grid(-0.3, 0.3, 5)),
    Factor("x", _grid(-0.18, 0.18, 7)),  # half widths of the image
    Factor("y", _grid(-0.14, 0.14, 7)),
)
FORM = (
    Factor("neighbors", ("none", "left", "right", "both")),
    Factor("font", FACES),
    Factor("digit", tuple(str(digit) for digit in range(10))),
)
# Bump when a change of this file changes the pixels.
_REVISION = 2


@dataclass(frozen=True)
class DigitScenes:
    """Source of drawn digit scenes.

    Args:
        num_images: how many scenes.
        image_size: height and width, pixels.
        channels: 3, or 1 for gray scenes, which have no hues.
        scene_seed: of the scenes; it is part of the data, not of the training.
    """

    num_images: int
    image_size: int
    channels: int
    scene_seed: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (PALETTE if self.channels == 3 else ()) + LIGHT + POSE + FORM

    @property
    def num_samples(self) -> int:
        return self.num_images

    @property
    def fingerprint(self) -> str:
        return f"{self!r}-{_REVISION}-{SHA256}"

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for begin in range(start, stop, 256):
            index = np.arange(begin, min(begin + 256, stop))
            factors = self.draw_factors(index)
            images = self.render(factors, index)
            for row, number in enumerate(index):
                labels = {factor.name: int(factors[factor.name][row]) for factor in self.factors}
                yield Sample(f"{number:09d}", images[row], labels)

    def draw_factors(self, index: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Factor values of the scenes `index` (N,): name -> (N,) indices into the factor's values."""
        return {
            factor.name: (splitmix64(self.scene_seed, index, column) % np.uint64(len(factor.values))).astype(np.int64)
            for column, factor in enumerate(PALETTE + LIGHT + POSE + FORM)
        }

    def render(self, factors: dict[str, NDArray[np.int64]], index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw scenes (N, size, size, channels) with these factors; `index` picks the neighbor digits."""
        value: dict[str, Array] = {
            factor.name: np.take(np.asarray(factor.values, np.float32), factors[factor.name])[:, None, None]
            for factor in PALETTE + LIGHT + POSE
        }
        ink = self._ink(value, factors, index)[..., None]
        half = value["contrast"] * np.float32(0.5)
        ground, stroke = value["luminance"] - half, value["luminance"] + half
        if self.channels == 3:
            ground = _color(ground, value["hue"])
            stroke = _color(stroke, value["hue"] + value["hue_offset"])
        else:
            ground, stroke = ground[..., None], stroke[..., None]
        return np.asarray(np.rint((ground + (stroke - ground) * ink) * np.float32(255)), np.uint8)

    def _ink(self, value: dict[str, Array], factors: dict[str, NDArray[np.int64]], index: NDArray[np.int64]) -> Array:
        """Coverage by the digit and its neighbors, (N, size, size) in [0, 1]."""
        axis = (np.arange(self.image_size, dtype=np.float32) * 2 + 1) / self.image_size - 1
        x, y = axis[None, None, :] - value["x"], axis[None, :, None] - value["y"]
        cos = _cosine(value["rotation"])
        sin = _cosine(value["rotation"] - np.pi / 2)
        # The digit is 28 of the cell's 40 pixels high, so `scale` of the image is scale * 40 / 28 cells.
        stretch = np.float32(28 / CELL) / value["scale"]
        u, v = (cos * x + sin * y) * stretch, (cos * y - sin * x) * stretch
        u = u - value["shear"] * v
        atlas, font, digit = load_atlas(), factors["font"], factors["digit"]
        ink = _sample(atlas[font, digit], u, v)
        beside = factors["neighbors"]
        for side, (bit, step) in enumerate(((1, 1.15), (2, -1.15))):
            other = (splitmix64(self.scene_seed, index, 100 + side) % np.uint64(10)).astype(np.int64)
            shown = ((beside & bit) > 0)[:, None, None]
            ink = np.maximum(ink, shown * _sample(atlas[font, other], u + np.float32(step), v))
        return ink


def _color(luminance: Array, hue: Array) -> Array:
    """RGB in [0, 1], (N, 1, 1, 3), whose mean is the luminance; the swing l (1 - l) cannot leave the gamut."""
    phase = np.arange(3) / 3
    swing = _cosine(2 * np.pi * (hue[..., None].astype(np.float64) - phase))
    return np.asarray(luminance[..., None] * (1 + (1 - luminance[..., None]) * swing), np.float32)


def _cosine(angle: NDArray[np.floating[Any]]) -> Array:
    """The cosine without its last digits, in which processors differ: scenes are the same on every machine."""
    return np.round(np.cos(angle.astype(np.float64)), 6).astype(np.float32)


def _sample(cells: Array, u: Array, v: Array) -> Array:
    """Bilinear samples of cells (N, 40, 40) at (u, v) in [-1, 1], (N, h, w); zero outside."""
    rows, columns = (v + 1) * (CELL / 2) - 0.5, (u + 1) * (CELL / 2) - 0.5
    rows, columns = np.clip(rows, 0, CELL - 1.001), np.clip(columns, 0, CELL - 1.001)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    flat = cells.reshape(-1)
    base = np.arange(len(cells))[:, None, None] * (CELL * CELL) + top * CELL + left
    upper = flat[base] * (1 - right) + flat[base + 1] * right
    lower = flat[base + CELL] * (1 - right) + flat[base + CELL + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)
