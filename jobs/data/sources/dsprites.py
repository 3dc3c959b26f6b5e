"""dSprites: white shapes on black, every factor known.

References:
    Matthey, Higgins, Hassabis, Lerchner: dSprites: Disentanglement testing Sprites dataset, 2017.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.config import AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.hdf5 import Hdf5Array, find_hdf5_array
from jobs.data.formats.npz import NpzArray, find_npz_array
from jobs.data.formats.published import PublishedFile, invalid_file, require, warnings
from jobs.data.sources.base import BaseFilesConfig, Factor, Sample, Source, root_field
from jobs.errors import UserError

_STEM, _URL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64", "https://github.com/google-deepmind/dsprites-dataset"
NPZ = PublishedFile(f"{_STEM}.npz", None, None, _URL)
HDF5 = PublishedFile(f"{_STEM}.hdf5", 28_024_106, "b331c4447a651c44bf5e8ae09022e230", _URL)
NAMES = ("shape", "scale", "orientation", "x", "y")
_SHAPES = {1.0: "square", 2.0: "ellipse", 3.0: "heart"}  # as the file numbers them


class DspritesConfig(BaseFilesConfig):
    """dSprites: 737,280 binary images of one shape, 64x64, with five factors."""

    name: Literal["dsprites"] = "dsprites"
    root: AbsolutePath = root_field("dsprites", "the published .npz or .hdf5")

    def open(self) -> "DSprites":
        return DSprites(self.root)


@dataclass(frozen=True)
class DSprites(Source):
    """Source of the 737,280 images, 64x64x1 of 0 and 255, last factor fastest; the .npz takes precedence.

    The factors have their true values, as in disentanglement_lib. The publisher's sixth factor, the color, is left out
    because it has one value only.
    """

    folder: Path
    image_size, channels = 64, 1

    @cached_property
    def _arrays(self) -> tuple[NpzArray | Hdf5Array, NpzArray | Hdf5Array, NpzArray | Hdf5Array]:
        """Images, classes and values of the same samples, row by row."""
        path = self.folder / HDF5.name
        if not path.is_file() or (self.folder / NPZ.name).is_file():
            [path] = require(self.folder, "dsprites", [NPZ])
        find, separator = (find_npz_array, "_") if path.suffix == ".npz" else (find_hdf5_array, "/")
        images = find(path, "imgs", "uint8", (64, 64))
        classes = find(path, f"latents{separator}classes", "int64", (6,))
        values = find(path, f"latents{separator}values", "float64", (6,))
        counts = [array.shape[0] for array in (images, classes, values)]
        if len(set(counts)) > 1 or not counts[0]:
            raise UserError(invalid_file(path, f"{counts} images, classes and values instead of equal numbers"))
        return images, classes, values

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        images, *labels = self._arrays
        # The labels are 70 MB at most, unlike the images.
        classes, values = (np.concatenate(list(array.blocks(0, self.num_samples))) for array in labels)
        tables = [_values_of(classes[:, column], values[:, column]) for column in range(1, 6)]
        if () in tables or not set(tables[0]) <= set(_SHAPES):
            raise UserError(invalid_file(images.path, "classes do not number the values"))
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

    def validate(self) -> list[str]:
        self.factors  # noqa: B018  (reads all labels)
        return warnings(self.folder, [file for file in (NPZ, HDF5) if file.name == self._arrays[0].path.name])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        images, classes, _ = self._arrays
        # Rows are chained because blocks of images and of classes differ in length.
        rows = chain.from_iterable(classes.blocks(start, stop))
        pictures = chain.from_iterable(images.blocks(start, stop))
        for sample_id, image, row in zip(range(start, stop), pictures, rows, strict=True):
            if image.max() > 1:
                raise UserError(invalid_file(images.path, "pixels other than 0 and 1"))
            labels = dict(zip(NAMES, row[1:].tolist(), strict=True))
            yield Sample(f"{sample_id:06d}", image[..., None] * np.uint8(255), labels)


def _values_of(classes: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the value of each class of one factor, or an empty tuple if the classes do not number the values."""
    unique, first = np.unique(classes, return_index=True)
    table = values[first]
    if not np.array_equal(unique, np.arange(len(unique))) or not np.array_equal(table[classes], values):
        return ()
    return tuple(table.tolist())
