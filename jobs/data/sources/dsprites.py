"""dSprites (Matthey, Higgins, Hassabis, Lerchner 2017): white shapes on black, every factor known."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.hdf5 import Hdf5Array, find_hdf5_array
from jobs.data.formats.npz import NpzArray, find_npz_array
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample
from jobs.errors import UserError

_STEM, _URL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64", "https://github.com/google-deepmind/dsprites-dataset"
NPZ = PublishedFile(f"{_STEM}.npz", None, None, _URL)
HDF5 = PublishedFile(f"{_STEM}.hdf5", 28_024_106, "b331c4447a651c44bf5e8ae09022e230", _URL)
NAMES = ("shape", "scale", "orientation", "x", "y")
_SHAPES = {1.0: "square", 2.0: "ellipse", 3.0: "heart"}  # as the file numbers them


@dataclass(frozen=True)
class DSprites:
    """Source of the 737,280 images, 64x64x1 of 0 and 255, last factor fastest.

    The factors are shape, scale, orientation, x and y with their true values, as disentanglement_lib has
    them: the publisher's sixth, the color, has one value only and is left out.

    Args:
        folder: holds the published .npz or the published .hdf5; the .npz goes first.
    """

    folder: Path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 64, 64, 1

    @cached_property
    def _arrays(self) -> tuple[NpzArray | Hdf5Array, NpzArray | Hdf5Array, NpzArray | Hdf5Array]:
        """Images, classes and values, row by row the same samples.

        Raises:
            UserError: no file, or its arrays have other shapes.
        """
        path = self.folder / HDF5.name
        if not path.is_file() or (self.folder / NPZ.name).is_file():
            [path] = require(self.folder, "dsprites", [NPZ])
        images: NpzArray | Hdf5Array
        classes: NpzArray | Hdf5Array
        values: NpzArray | Hdf5Array
        if path.suffix == ".npz":
            images = find_npz_array(path, "imgs", "uint8", (64, 64))
            classes = find_npz_array(path, "latents_classes", "int64", (6,))
            values = find_npz_array(path, "latents_values", "float64", (6,))
        else:
            images = find_hdf5_array(path, "imgs", "uint8", (64, 64))
            classes = find_hdf5_array(path, "latents/classes", "int64", (6,))
            values = find_hdf5_array(path, "latents/values", "float64", (6,))
        counts = [array.shape[0] for array in (images, classes, values)]
        if len(set(counts)) > 1 or not counts[0]:
            raise UserError(f"{path} has {counts} images, classes and values: put the published file there")
        return images, classes, values

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        images, *labels = self._arrays
        # The labels are 70 MB at most, unlike the images.
        classes, values = (np.concatenate(list(array.blocks(0, self.num_samples))) for array in labels)
        tables = [_values_of(classes[:, column], values[:, column]) for column in range(1, 6)]
        if () in tables or not set(tables[0]) <= set(_SHAPES):
            raise UserError(f"{images.path} has classes that do not number its values: put the published file there")
        shapes = Factor(NAMES[0], tuple(_SHAPES[value] for value in tables[0]))
        return shapes, *(Factor(name, table) for name, table in zip(NAMES[1:], tables[1:], strict=True))

    @property
    def num_samples(self) -> int:
        return self._arrays[0].shape[0]

    @cached_property
    def fingerprint(self) -> str:
        return f"dsprites-{content_fingerprint([self._arrays[0].path])}"

    @property
    def sequential(self) -> bool:
        images = self._arrays[0]
        return isinstance(images, NpzArray) and not images.stored

    def check(self) -> list[str]:
        self.factors  # noqa: B018  (reads all labels)
        return remarks(self.folder, [file for file in (NPZ, HDF5) if file.name == self._arrays[0].path.name])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        images, classes, _ = self._arrays
        # Images and classes come in blocks of different lengths.
        rows = chain.from_iterable(classes.blocks(start, stop))
        pictures = chain.from_iterable(images.blocks(start, stop))
        for number, picture, row in zip(range(start, stop), pictures, rows, strict=True):
            if picture.max() > 1:
                raise UserError(f"{images.path} has pixels other than 0 and 1: put the published file there")
            labels = dict(zip(NAMES, row[1:].tolist(), strict=True))
            yield Sample(f"{number:06d}", picture[..., None] * np.uint8(255), labels)


def _values_of(classes: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, ...]:
    """Value of each class of one factor, or nothing if the classes do not number the values."""
    found, first = np.unique(classes, return_index=True)
    table = values[first]
    if not np.array_equal(found, np.arange(len(found))) or not np.array_equal(table[classes], values):
        return ()
    return tuple(table.tolist())
