"""3D Shapes: one object before two walls, every factor known.

References:
    Burgess, Kim: 3D Shapes Dataset, 2018.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.config import AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.hdf5 import Hdf5Array, find_hdf5_array
from jobs.data.formats.published import PublishedFile, invalid_file, require, warnings
from jobs.data.sources.base import BaseFilesConfig, Factor, Sample, Source, root_field
from jobs.errors import UserError

FILE = PublishedFile(
    "3dshapes.h5", 267_573_662, "099a2078d58cec4daad0702c55d06868", "https://github.com/google-deepmind/3d-shapes"
)
NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


class Shapes3dConfig(BaseFilesConfig):
    """3DShapes: 480,000 color images of one object before two walls, 64x64, with six factors."""

    name: Literal["shapes3d"] = "shapes3d"
    root: AbsolutePath = root_field("shapes3d", "3dshapes.h5")

    def open(self) -> "Shapes3D":
        return Shapes3D(self.root)


@dataclass(frozen=True)
class Shapes3D(Source):
    """Source of the 480,000 images, 64x64x3, last factor fastest; factor values are the sorted labels of the file."""

    folder: Path
    image_size, channels = 64, 3

    @cached_property
    def _arrays(self) -> tuple[Hdf5Array, Hdf5Array]:
        """Images and labels of the same samples, row by row."""
        [path] = require(self.folder, "shapes3d", [FILE])
        images = find_hdf5_array(path, "images", "uint8", (64, 64, 3))
        labels = find_hdf5_array(path, "labels", "float64", (6,))
        if images.shape[0] != labels.shape[0] or not images.shape[0]:
            raise UserError(invalid_file(path, f"{images.shape[0]} images and {labels.shape[0]} labels"))
        return images, labels

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        labels = self._arrays[1]
        columns = np.concatenate(list(labels.blocks(0, self.num_samples))).T
        if not np.isfinite(columns).all():
            raise UserError(invalid_file(labels.path, "labels are not finite"))
        return tuple(
            Factor(name, tuple(np.unique(column).tolist())) for name, column in zip(NAMES, columns, strict=True)
        )

    @property
    def num_samples(self) -> int:
        return self._arrays[0].shape[0]

    @cached_property
    def fingerprint(self) -> str:
        return f"shapes3d-{content_fingerprint([self._arrays[0].path])}"

    def validate(self) -> list[str]:
        self.factors  # noqa: B018  (reads all labels)
        return warnings(self.folder, [FILE])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        images, labels = self._arrays
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        # Rows are chained because blocks of images and of labels differ in length.
        rows = chain.from_iterable(labels.blocks(start, stop))
        pictures = chain.from_iterable(images.blocks(start, stop))
        for sample_id, image, row in zip(range(start, stop), pictures, rows, strict=True):
            factors = {name: table[value] for (name, table), value in zip(index.items(), row.tolist(), strict=True)}
            yield Sample(f"{sample_id:06d}", image, factors)
