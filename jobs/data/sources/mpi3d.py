"""MPI3D (Gondal et al. 2019): a robot arm with an object, drawn or filmed, every factor known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.data.formats.npz import NpzArray, find_npz_array
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample
from jobs.errors import UserError

_URL = "https://github.com/rr-learning/disentanglement_dataset"
FILES = {
    "toy": PublishedFile("mpi3d_toy.npz", None, "55889cb7c7dfc655d6e0277beee88868", _URL),
    "realistic": PublishedFile("mpi3d_realistic.npz", None, "59a6225b88b635365f70c91b3e52f70f", _URL),
    "real": PublishedFile("mpi3d_real.npz", None, "0f33f609918fb5c97996692f91129802", _URL),
}
FACTORS = (
    Factor("object_color", ("white", "green", "red", "blue", "brown", "olive")),
    Factor("object_shape", ("cone", "cube", "cylinder", "hexagonal", "pyramid", "sphere")),
    Factor("object_size", ("small", "large")),
    Factor("camera_height", ("top", "center", "bottom")),
    Factor("background_color", ("purple", "sea green", "salmon")),
    Factor("horizontal_axis", tuple(range(40))),  # steps of the arm
    Factor("vertical_axis", tuple(range(40))),
)


@dataclass(frozen=True)
class Mpi3d:
    """Source of the 1,036,800 images of one variant, 64x64x3, last factor fastest.

    Args:
        folder: holds mpi3d_toy.npz, mpi3d_realistic.npz or mpi3d_real.npz.
        variant: which of them.
        factors: as published; the file has all their combinations and says nothing of them.
    """

    folder: Path
    variant: Literal["toy", "realistic", "real"]
    factors: tuple[Factor, ...] = FACTORS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 64, 64, 3

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(factor.values) for factor in self.factors)

    @cached_property
    def _images(self) -> NpzArray:
        """The images.

        Raises:
            UserError: no file, or not one with an image for each combination.
        """
        [path] = require(self.folder, "mpi3d", [FILES[self.variant]])
        images = find_npz_array(path, "images", "uint8", (64, 64, 3))
        if images.shape[0] != math.prod(self._sizes):
            raise UserError(
                f"{path} has {images.shape[0]:,} images, not {math.prod(self._sizes):,}, one for each combination: "
                "put the published file there"
            )
        return images

    @property
    def num_samples(self) -> int:
        return self._images.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        return f"mpi3d-{self.variant}-{content_fingerprint([self._images.path])}"

    @property
    def sequential(self) -> bool:
        return not self._images.stored

    def check(self) -> list[str]:
        self._images  # noqa: B018  (reads the header)
        return remarks(self.folder, [FILES[self.variant]])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        names = [factor.name for factor in self.factors]
        for number, image in enumerate(chain.from_iterable(self._images.blocks(start, stop)), start):
            place = map(int, np.unravel_index(number, self._sizes))
            yield Sample(f"{number:07d}", image, dict(zip(names, place, strict=True)))
