"""3D Shapes (Burgess, Kim 2018): one object in a room, every factor known."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.hdf5 import Hdf5Array, find_hdf5_array
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample
from jobs.errors import UserError

FILE = PublishedFile(
    "3dshapes.h5", 267_573_662, "099a2078d58cec4daad0702c55d06868", "https://github.com/google-deepmind/3d-shapes"
)
NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


@dataclass(frozen=True)
class Shapes3D:
    """Source of the 480,000 images, 64x64x3, last factor fastest.

    The factors are floor_hue, wall_hue, object_hue, scale, shape and orientation; their values are the
    different ones of each column of the file's labels, sorted.

    Args:
        folder: holds 3dshapes.h5.
    """

    folder: Path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 64, 64, 3

    @cached_property
    def _arrays(self) -> tuple[Hdf5Array, Hdf5Array]:
        """Images and labels, row by row the same samples.

        Raises:
            UserError: no file, or its arrays have other shapes.
        """
        [path] = require(self.folder, "shapes3d", [FILE])
        images = find_hdf5_array(path, "images", "uint8", (64, 64, 3))
        labels = find_hdf5_array(path, "labels", "float64", (6,))
        if images.shape[0] != labels.shape[0] or not images.shape[0]:
            raise UserError(
                f"{path} has {images.shape[0]} images and {labels.shape[0]} labels: put the published file there"
            )
        return images, labels

    @cached_property
    def _values(self) -> tuple[NDArray[np.float64], ...]:
        labels = self._arrays[1]
        columns = np.concatenate(list(labels.blocks(0, self.num_samples))).T
        if not np.isfinite(columns).all():
            raise UserError(f"{labels.path} has labels that are no numbers: put the published file there")
        return tuple(np.unique(column) for column in columns)

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(name, tuple(values.tolist())) for name, values in zip(NAMES, self._values, strict=True))

    @property
    def num_samples(self) -> int:
        return self._arrays[0].shape[0]

    @cached_property
    def fingerprint(self) -> str:
        return f"shapes3d-{content_fingerprint([self._arrays[0].path])}"

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        self.factors  # noqa: B018  (reads all labels)
        return remarks(self.folder, [FILE])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        images, labels = self._arrays
        # Images and labels come in blocks of different lengths.
        rows = chain.from_iterable(labels.blocks(start, stop))
        for number, image, row in zip(
            range(start, stop), chain.from_iterable(images.blocks(start, stop)), rows, strict=True
        ):
            place = {
                name: int(np.searchsorted(values, value))
                for name, values, value in zip(NAMES, self._values, row, strict=True)
            }
            yield Sample(f"{number:06d}", image, place)
