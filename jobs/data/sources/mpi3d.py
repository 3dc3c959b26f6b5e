"""MPI3D: a robot arm with an object, rendered or filmed, every factor known.

References:
    Gondal et al.: On the Transfer of Inductive Bias from Simulation to the Real World: a New Disentanglement Dataset,
    NeurIPS 2019, arXiv:1906.03292.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.npz import NpzArray, find_npz_array
from jobs.data.formats.published import PublishedFile, invalid_file, require, warnings
from jobs.data.sources.base import BaseFilesConfig, Factor, Sample, Source, root_field
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


class Mpi3dConfig(BaseFilesConfig):
    """MPI3D: 1,036,800 color images of a robot's arm, 64x64, with seven factors."""

    name: Literal["mpi3d"] = "mpi3d"
    root: AbsolutePath = root_field("mpi3d", "mpi3d_toy.npz, mpi3d_realistic.npz or mpi3d_real.npz")
    variant: Literal["toy", "realistic", "real"] = Field(
        "real", description="which of the three published files to use"
    )

    def open(self) -> "Mpi3d":
        return Mpi3d(self.root, self.variant)


@dataclass(frozen=True)
class Mpi3d(Source):
    """Source of the 1,036,800 images of one variant, 64x64x3, last factor fastest; the file holds no labels."""

    folder: Path
    variant: Literal["toy", "realistic", "real"]
    factors: tuple[Factor, ...] = FACTORS
    image_size, channels = 64, 3

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(factor.values) for factor in self.factors)

    @cached_property
    def _images(self) -> NpzArray:
        [path] = require(self.folder, "mpi3d", [FILES[self.variant]])
        images = find_npz_array(path, "images", "uint8", (64, 64, 3))
        if images.shape[0] != math.prod(self._sizes):
            expected = f"{math.prod(self._sizes):,}, one per combination of the factors"
            raise UserError(invalid_file(path, f"{images.shape[0]:,} images instead of {expected}"))
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

    def validate(self) -> list[str]:
        self._images  # noqa: B018  (reads the header)
        return warnings(self.folder, [FILES[self.variant]])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        names = [factor.name for factor in self.factors]
        for sample_id, image in enumerate(chain.from_iterable(self._images.blocks(start, stop)), start):
            indices = map(int, np.unravel_index(sample_id, self._sizes))
            yield Sample(f"{sample_id:07d}", image, dict(zip(names, indices, strict=True)))
