"""Drawn digit scenes: colored digits on a colored ground, like SVHN but with every factor known.

The palette (hue, hue offset, luminance, contrast) is the simple end of the hierarchy, the pose the middle, digit and
font the complex end. Factors are independent and uniform. Sample i is a pure function of (seed, i).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.data.sampling import splitmix64
from jobs.data.sources.base import BaseDataConfig, Channels, Factor, ImageSize, Sample, Source, even_grid
from jobs.data.sources.glyphs import CELL, FACES, SHA256, load_atlas

Array = NDArray[np.float32]


PALETTE = (
    Factor("hue", even_grid(0, 1 - 1 / 12, 12)),  # hue of the ground, turns
    Factor("hue_offset", even_grid(1 / 6, 5 / 6, 5)),  # hue of the digit minus hue of the ground, turns
)
LIGHT = (
    Factor("luminance", even_grid(0.35, 0.65, 6)),  # mean of digit and ground
    Factor("contrast", (-0.6, -0.45, -0.3, 0.3, 0.45, 0.6)),  # digit minus ground
)
POSE = (
    Factor("scale", even_grid(0.6, 0.85, 5)),  # height of the digit / height of the image
    Factor("rotation", even_grid(-0.35, 0.35, 5)),  # radians
    Factor("shear", even_grid(-0.3, 0.3, 5)),
    Factor("x", even_grid(-0.18, 0.18, 7)),  # half widths of the image
    Factor("y", even_grid(-0.14, 0.14, 7)),
)
FORM = (
    Factor("neighbors", ("none", "left", "right", "both")),
    Factor("font", FACES),
    Factor("digit", tuple(str(digit) for digit in range(10))),
)
_REVISION = 2  # raise it when a change of this file changes the pixels


class DigitsConfig(BaseDataConfig):
    """Drawn digit scenes with known factors."""

    name: Literal["digits"] = "digits"
    num_images: int = Field(30_000, ge=10, le=10**9, description="number of scenes to draw")
    image_size: ImageSize = Field(32, description="height and width in pixels")
    channels: Channels = Field(3, description="3 for color, 1 for gray")
    scene_seed: int = Field(0, ge=0, lt=2**63, description="random seed of the scenes, which is part of the data")

    def open(self) -> "DigitScenes":
        return DigitScenes(self.num_images, self.image_size, self.channels, self.scene_seed)


@dataclass(frozen=True)
class DigitScenes(Source):
    """Source of drawn digit scenes. Gray scenes have no hues; `scene_seed` is part of the data, not of the training."""

    num_images: int
    image_size: int
    channels: int
    scene_seed: int

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (PALETTE if self.channels == 3 else ()) + LIGHT + POSE + FORM

    @property
    def num_samples(self) -> int:
        return self.num_images

    @property
    def fingerprint(self) -> str:
        return f"{self!r}-{_REVISION}-{SHA256}"

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for begin in range(start, stop, 256):
            index = np.arange(begin, min(begin + 256, stop))
            factors = self.draw_factors(index)
            images = self.render(factors, index)
            for row, sample_id in enumerate(index):
                labels = {factor.name: int(factors[factor.name][row]) for factor in self.factors}
                yield Sample(f"{sample_id:09d}", images[row], labels)

    def draw_factors(self, index: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return name of each factor -> (N,) indices into its values, for (N,) numbers of scenes."""
        return {
            factor.name: (splitmix64(self.scene_seed, index, column) % np.uint64(len(factor.values))).astype(np.int64)
            for column, factor in enumerate(PALETTE + LIGHT + POSE + FORM)
        }

    def render(self, factors: dict[str, NDArray[np.int64]], index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return scenes of these factors, (N, image_size, image_size, channels) uint8.

        `index`, the (N,) numbers of the scenes, determines the neighbor digits.
        """
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
        """Return the coverage by the digit and its neighbors, (N, size, size) in [0, 1]."""
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
        for side, (bit, step) in enumerate(((1, 1.15), (2, -1.15))):
            other = (splitmix64(self.scene_seed, index, 100 + side) % np.uint64(10)).astype(np.int64)
            visible = ((factors["neighbors"] & bit) > 0)[:, None, None]
            ink = np.maximum(ink, visible * _sample(atlas[font, other], u + np.float32(step), v))
        return ink


def _color(luminance: Array, hue: Array) -> Array:
    """Return RGB in [0, 1], (N, 1, 1, 3), whose mean is the luminance; a swing of l (1 - l) stays in the gamut."""
    phase = np.arange(3) / 3
    swing = _cosine(2 * np.pi * (hue[..., None].astype(np.float64) - phase))
    return np.asarray(luminance[..., None] * (1 + (1 - luminance[..., None]) * swing), np.float32)


def _cosine(angle: NDArray[np.floating[Any]]) -> Array:
    """Return the cosine without its last digits, because processors differ in them."""
    return np.round(np.cos(angle.astype(np.float64)), 6).astype(np.float32)


def _sample(cells: Array, u: Array, v: Array) -> Array:
    """Return bilinear samples of cells (N, 40, 40) at (u, v) in [-1, 1], (N, h, w); zero outside."""
    rows, columns = (v + 1) * (CELL / 2) - 0.5, (u + 1) * (CELL / 2) - 0.5
    rows, columns = np.clip(rows, 0, CELL - 1.001), np.clip(columns, 0, CELL - 1.001)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    flat = cells.reshape(-1)
    base = np.arange(len(cells))[:, None, None] * (CELL * CELL) + top * CELL + left
    upper = flat[base] * (1 - right) + flat[base + 1] * right
    lower = flat[base + CELL] * (1 - right) + flat[base + CELL + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)
