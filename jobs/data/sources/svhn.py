"""Street View House Numbers (Netzer et al. 2011), cropped digits: MATLAB files, streamed image by image."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.formats.binary_arrays import FIX_HINT, opened
from jobs.data.formats.mat5 import MatArray, array_of
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample, Split
from jobs.errors import UserError

_URL = "http://ufldl.stanford.edu/housenumbers"
PARTS: tuple[tuple[str, Split, PublishedFile], ...] = (
    ("train", "train", PublishedFile("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373", _URL)),
    ("extra", "train", PublishedFile("extra_32x32.mat", 1329278602, "a93ce644f1a588dc4d68dda5feec44a7", _URL)),
    ("test", "test", PublishedFile("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3", _URL)),
)
_SHAPE = (32, 32, 3)
_BATCH = 256  # images in memory at once


@dataclass(frozen=True)
class Svhn:
    """Source of the 32x32 color images around one digit, 0 to 255; the factor is the digit.

    Args:
        folder: holds train_32x32.mat, test_32x32.mat and, if asked for, extra_32x32.mat.
        extra: whether the easier images of extra_32x32.mat join the training split.
    """

    folder: Path
    extra: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return _SHAPE

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (Factor("digit", tuple(str(digit) for digit in range(10))),)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Images of each part, from the headers of the files.

        Raises:
            UserError: a file is missing or not of the format.
        """
        return tuple(_count(path) for path in self._paths)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def fingerprint(self) -> str:
        return f"svhn-{'extra' if self.extra else 'plain'}-{content_fingerprint(self._paths)}"

    @property
    def sequential(self) -> bool:
        return True

    def check(self) -> list[str]:
        for path, count in zip(self._paths, self.counts, strict=True):
            _read_labels(path, count)
        return remarks(self.folder, [file for _, _, file in self._parts])

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        first = 0
        for (part, split, _), path, count in zip(self._parts, self._paths, self.counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                labels = _read_labels(path, count)
                for number, image in enumerate(_read_images(path, begin, end), start=begin):
                    yield Sample(f"{part}-{number:06d}", image, {"digit": int(labels[number])}, split)
            first += count

    @property
    def _parts(self) -> list[tuple[str, Split, PublishedFile]]:
        return [part for part in PARTS if self.extra or part[0] != "extra"]

    @property
    def _paths(self) -> list[Path]:
        return require(self.folder, "svhn", [file for _, _, file in self._parts])


@contextmanager
def _opened_array(path: Path, name: str) -> Iterator[MatArray]:
    with opened(path) as file, array_of(str(path), file, name) as array:
        yield array


def _count(path: Path) -> int:
    with _opened_array(path, "X") as images:
        if images.shape[:-1] != _SHAPE or images.dtype != np.uint8:
            raise UserError(f"{path} has X of {images.dtype} {images.shape}, not of uint8 (32, 32, 3, N): {FIX_HINT}")
        return images.shape[-1]


def _read_images(path: Path, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Images start..stop-1, (32, 32, 3) each."""
    size = math.prod(_SHAPE)
    with _opened_array(path, "X") as images:
        images.skip(start * size)
        for begin in range(start, stop, _BATCH):
            count = min(_BATCH, stop - begin)
            # The first index of X, the row, runs fastest.
            columns = np.frombuffer(images.read(count * size), np.uint8).reshape(count, *_SHAPE[::-1])
            yield from np.ascontiguousarray(columns.transpose(0, 3, 2, 1))
        if stop == images.shape[-1]:
            images.finish()


def _read_labels(path: Path, count: int) -> NDArray[np.int64]:
    """The digits, (count,), each 0 to 9: the file says 10 for the digit 0."""
    with _opened_array(path, "y") as labels:
        if labels.shape != (count, 1):
            raise UserError(f"{path} has y of shape {labels.shape}, and {count} images: {FIX_HINT}")
        values = np.frombuffer(labels.read(count * labels.dtype.itemsize), labels.dtype)
        labels.finish()
    if not np.isin(values, np.arange(11)).all():
        raise UserError(f"{path} has labels other than 1 to 10: {FIX_HINT}")
    return values.astype(np.int64) % 10
