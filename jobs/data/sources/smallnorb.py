"""Small NORB: toys under varied light and viewpoint, in binary-matrix files.

Despite their names the files are not MATLAB files. They hold a little-endian header of magic number, rank and at least
three sizes, then the numbers, last index fastest.

References:
    LeCun, Huang, Bottou: Learning Methods for Generic Object Recognition with Invariance to Pose and Lighting,
    CVPR 2004.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.decoding import check_shape
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.idx import ByteArray
from jobs.data.formats.images import resize_square
from jobs.data.formats.published import (
    PublishedFile,
    invalid_file,
    open_plain_or_gzip,
    require,
    warnings,
)
from jobs.data.sources.base import BaseFilesConfig, Factor, ImageSize, Sample, Source, Split, ranges_by_file, root_field
from jobs.errors import UserError

_URL = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
_TRAINING, _TESTING = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
SUBSETS: tuple[tuple[Split, str], ...] = (("train", _TRAINING), ("test", _TESTING))
# Images (dat), categories (cat) and the other factors (info): md5 of the uncompressed file and of the .gz.
FILES = {
    f"{_TRAINING}-dat.mat": ("8138a0902307b32dfa0025a36dfa45ec", "66054832f9accfe74a0f4c36a75bc0a2"),
    f"{_TRAINING}-cat.mat": ("fd5120d3f770ad57ebe620eb61a0b633", "23c8b86101fbf0904a000b43d3ed2fd9"),
    f"{_TRAINING}-info.mat": ("19faee774120001fc7e17980d6960451", "51dee1210a742582ff607dfd94e332e3"),
    f"{_TESTING}-dat.mat": ("e9920b7f7b2869a8f1a12e945b2c166c", "e4ad715691ed5a3a5f138751a4ceb071"),
    f"{_TESTING}-cat.mat": ("fd5120d3f770ad57ebe620eb61a0b633", "5aa791cd7e6016cf957ce9bdb93b8603"),
    f"{_TESTING}-info.mat": ("7c5b871cc69dcadec1bf6a18141f5edc", "a9454f3864d7fd4bb3ea7fc3eb84924e"),
}
FACTORS = (
    Factor("category", ("animal", "human", "airplane", "truck", "car")),
    Factor("instance", tuple(range(10))),  # of the category; each is in one split only
    Factor("elevation", tuple(range(30, 75, 5))),  # of the camera, degrees
    Factor("azimuth", tuple(range(0, 360, 20))),  # degrees
    Factor("lighting", tuple(range(6))),
)
_BYTES, _INTEGERS = 0x1E3D4C55, 0x1E3D4C54  # magic numbers
_STEPS = (1, 1, 1, 2, 1)  # between the stored values of each factor, which begin at 0
_NATIVE = 96


class SmallNorbConfig(BaseFilesConfig):
    """Small NORB: 48,600 gray images of toys with five factors and the publisher's test split."""

    name: Literal["smallnorb"] = "smallnorb"
    root: AbsolutePath = root_field("smallnorb", "the dat, cat and info files of training and testing, .gz or not")
    image_size: ImageSize = Field(64, description="height and width in pixels after resizing; 96: unchanged")

    def open(self) -> "SmallNorb":
        return SmallNorb(self.root, self.image_size)


@dataclass(frozen=True)
class SmallNorb(Source):
    """Source of the left camera's images, gray, 0 to 255; an `image_size` of 96 leaves them unchanged."""

    folder: Path
    image_size: int
    channels = 1
    factors = FACTORS

    @property
    def _published(self) -> list[PublishedFile]:
        """The six files, plain where a plain one exists, else as .gz."""
        return [
            PublishedFile(name, None, plain, _URL)
            if (self.folder / name).is_file()
            else PublishedFile(f"{name}.gz", None, compressed, _URL)
            for name, (plain, compressed) in FILES.items()
        ]

    @property
    def _paths(self) -> dict[str, Path]:
        return dict(zip(FILES, require(self.folder, "smallnorb", self._published), strict=True))

    def _images(self, subset: str) -> ByteArray:
        return ByteArray(self._paths[f"{subset}-dat.mat"], _read_image_header)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of training and test images, from the headers; files that do not fit together raise a UserError."""
        counts = tuple(self._images(subset).shape[0] for _, subset in SUBSETS)
        for (_, subset), count in zip(SUBSETS, counts, strict=True):
            self._read_factors(subset, count)
        return counts

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @cached_property
    def fingerprint(self) -> str:
        return f"smallnorb-{self.image_size}-{content_fingerprint(list(self._paths.values()))}"

    @property
    def sequential(self) -> bool:
        return any(self._images(subset).path.suffix == ".gz" for _, subset in SUBSETS)

    def validate(self) -> list[str]:
        self.counts  # noqa: B018  (reads the headers and factors)
        for _, subset in SUBSETS:
            self._images(subset).validate_length()
        return warnings(self.folder, self._published)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        names = [factor.name for factor in FACTORS]
        for file, begin, end in ranges_by_file(self.counts, start, stop):
            split, subset = SUBSETS[file]
            factors = self._read_factors(subset, self.counts[file])[begin:end].tolist()
            images = (pair[0] for pairs in self._images(subset).blocks(begin, end) for pair in pairs)  # left camera
            for index, (image, row) in enumerate(zip(images, factors, strict=True), start=begin):
                pixels = resize_square(image, self.image_size)[..., None]
                yield Sample(f"{split}-{index:05d}", pixels, dict(zip(names, row, strict=True)), split)

    def _read_factors(self, subset: str, count: int) -> NDArray[np.int64]:
        """Return the index of each factor's value, (count, 5)."""
        files = [self._paths[f"{subset}-cat.mat"], *[self._paths[f"{subset}-info.mat"]] * 4]
        stored = np.column_stack([_read_integers(files[0], (count,)), _read_integers(files[1], (count, 4))])
        index, rest = np.divmod(stored.astype(np.int64), _STEPS)
        for column, factor in enumerate(FACTORS):
            invalid = (rest[:, column] != 0) | (index[:, column] < 0) | (index[:, column] >= len(factor.values))
            if invalid.any():
                value = stored[invalid.argmax(), column]
                raise UserError(invalid_file(files[column], f"value {value} of {factor.name}"))
        return index


def _read_header(path: Path, file: BufferedIOBase, magic: int) -> tuple[int, ...]:
    """Return the shape in the header."""
    start = file.read(8)
    actual, rank = struct.unpack("<II", start) if len(start) == 8 else (0, 0)
    if actual != magic or not 1 <= rank <= 4:
        raise UserError(invalid_file(path, "not a binary matrix of the expected type (magic number)"))
    sizes = file.read(4 * max(3, rank))
    if len(sizes) != 4 * max(3, rank):
        raise UserError(invalid_file(path, "ends in its header"))
    shape = struct.unpack_from(f"<{rank}I", sizes)
    check_shape(shape)
    return shape


def _read_image_header(path: Path, file: BufferedIOBase) -> tuple[int, ...]:
    shape = _read_header(path, file, _BYTES)
    if shape[1:] != (2, _NATIVE, _NATIVE):
        raise UserError(invalid_file(path, f"shape {shape} instead of (N, 2, 96, 96)"))
    return shape


def _read_integers(path: Path, expected: tuple[int, ...]) -> NDArray[np.int32]:
    """Read all numbers of a small file."""
    with open_plain_or_gzip(path) as file:
        shape = _read_header(path, file, _INTEGERS)
        if shape != expected:
            raise UserError(invalid_file(path, f"shape {shape}, but the images need {expected}"))
        content = file.read(4 * math.prod(shape) + 1)
    if len(content) != 4 * math.prod(shape):
        raise UserError(invalid_file(path, f"the length does not fit the shape {shape} in its header"))
    return np.frombuffer(content, "<i4").reshape(shape)
