"""Street View House Numbers, cropped digits: MATLAB files, streamed image by image.

References:
    Netzer, Wang, Coates, Bissacco, Wu, Ng: Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.mat5 import MatArray, open_mat_array
from jobs.data.formats.published import (
    PublishedFile,
    invalid_file,
    open_plain_or_gzip,
    require,
    warnings,
)
from jobs.data.sources.base import BaseFilesConfig, Factor, Sample, Source, Split, ranges_by_file, root_field
from jobs.errors import UserError

_URL = "http://ufldl.stanford.edu/housenumbers"
SUBSETS: tuple[tuple[str, Split, PublishedFile], ...] = (
    ("train", "train", PublishedFile("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373", _URL)),
    ("extra", "train", PublishedFile("extra_32x32.mat", 1329278602, "a93ce644f1a588dc4d68dda5feec44a7", _URL)),
    ("test", "test", PublishedFile("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3", _URL)),
)
_SHAPE = (32, 32, 3)
_BATCH = 256  # images in memory at once


class SvhnConfig(BaseFilesConfig):
    """SVHN, cropped digits: 32x32 color photographs of house numbers, with the publisher's test split."""

    name: Literal["svhn"] = "svhn"
    root: AbsolutePath = root_field("svhn", "train_32x32.mat and test_32x32.mat")
    extra: bool = Field(False, description="add the 531,131 easier images of extra_32x32.mat to the training split")

    def open(self) -> "Svhn":
        return Svhn(self.root, self.extra)


@dataclass(frozen=True)
class Svhn(Source):
    """Source of the 32x32 color images around one digit, 0 to 255; `extra` adds easier images to the training split."""

    folder: Path
    extra: bool
    image_size, channels = 32, 3
    factors = (Factor("digit", tuple("0123456789")),)
    sequential = True

    @property
    def _subsets(self) -> list[tuple[str, Split, PublishedFile]]:
        return [subset for subset in SUBSETS if self.extra or subset[0] != "extra"]

    @property
    def _paths(self) -> list[Path]:
        return require(self.folder, "svhn", [file for _, _, file in self._subsets])

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each file, from the headers."""
        return tuple(_count_images(path) for path in self._paths)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @cached_property
    def fingerprint(self) -> str:
        return f"svhn-{'extra' if self.extra else 'plain'}-{content_fingerprint(self._paths)}"

    def validate(self) -> list[str]:
        for path, count in zip(self._paths, self.counts, strict=True):
            _read_labels(path, count)
        return warnings(self.folder, [file for _, _, file in self._subsets])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for file, begin, end in ranges_by_file(self.counts, start, stop):
            (name, split, _), path = self._subsets[file], self._paths[file]
            labels = _read_labels(path, self.counts[file])
            for index, image in enumerate(_read_images(path, begin, end), start=begin):
                yield Sample(f"{name}-{index:06d}", image, {"digit": int(labels[index])}, split)


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[MatArray]:
    with open_plain_or_gzip(path) as file, open_mat_array(str(path), file, name) as array:
        yield array


def _count_images(path: Path) -> int:
    with _open_array(path, "X") as images:
        if images.shape[:-1] != _SHAPE or images.dtype != np.uint8:
            raise UserError(invalid_file(path, f"X is {images.dtype} {images.shape} instead of uint8 (32, 32, 3, N)"))
        return images.shape[-1]


def _read_images(path: Path, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the images start..stop-1, (32, 32, 3) each."""
    size = math.prod(_SHAPE)
    with _open_array(path, "X") as images:
        images.skip(start * size)
        for begin in range(start, stop, _BATCH):
            count = min(_BATCH, stop - begin)
            # The first index of X, the row, runs fastest.
            columns = np.frombuffer(images.read(count * size), np.uint8).reshape(count, *_SHAPE[::-1])
            yield from np.ascontiguousarray(columns.transpose(0, 3, 2, 1))
        if stop == images.shape[-1]:
            images.finish()


def _read_labels(path: Path, count: int) -> NDArray[np.int64]:
    """Return the digits, (count,), each 0 to 9; the file stores the digit 0 as 10."""
    with _open_array(path, "y") as labels:
        if labels.shape != (count, 1):
            raise UserError(invalid_file(path, f"y has shape {labels.shape}, but there are {count} images"))
        values = np.frombuffer(labels.read(count * labels.dtype.itemsize), labels.dtype)
        labels.finish()
    if not np.isin(values, np.arange(11)).all():
        raise UserError(invalid_file(path, "y has labels other than 1 to 10"))
    return values.astype(np.int64) % 10
