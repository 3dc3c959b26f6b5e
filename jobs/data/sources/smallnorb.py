"""Small NORB (LeCun, Huang, Bottou 2004): toys under varied light and viewpoint, in binary-matrix files.

Despite their names the files are not Matlab's: a little-endian header of magic number, rank and sizes (three at
least), then the numbers, last index fastest.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.data.formats.binary_arrays import FIX_HINT, check_length, opened, read_items, read_shape
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import Factor, Sample, Split
from jobs.errors import UserError

_URL = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
_TRAINING, _TESTING = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
PARTS: tuple[tuple[Split, str], ...] = (("train", _TRAINING), ("test", _TESTING))
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
_STEPS = (1, 1, 1, 2, 1)  # between the stored values of each factor; they begin at 0
_NATIVE = 96


@dataclass(frozen=True)
class SmallNorb:
    """Source of the left camera's images, gray, 0 to 255.

    Args:
        folder: holds dat, cat and info of training and testing, each plain or as .gz.
        image_size: height and width, pixels; 96 leaves the images as they are.
    """

    folder: Path
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 1

    @property
    def factors(self) -> tuple[Factor, ...]:
        return FACTORS

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Images of each part, from the headers of its three files.

        Raises:
            UserError: a file is missing or not of the format, or they do not fit.
        """
        return tuple(self._count(part) for _, part in PARTS)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def fingerprint(self) -> str:
        return f"smallnorb-{self.image_size}-{content_fingerprint(list(self._paths.values()))}"

    @property
    def sequential(self) -> bool:
        return any(self._paths[f"{part}-dat.mat"].suffix == ".gz" for _, part in PARTS)

    def check(self) -> list[str]:
        self.counts  # noqa: B018  (the headers and factors are read)
        for _, part in PARTS:
            check_length(self._paths[f"{part}-dat.mat"], _read_image_header)
        return remarks(self.folder, self._published)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        first = 0
        for (split, part), count in zip(PARTS, self.counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                factors = self._read_factors(part, count)[begin:end]
                yield from self._read_part(split, part, begin, factors)
            first += count

    def _read_part(self, split: Split, part: str, start: int, factors: NDArray[np.int64]) -> Iterator[Sample]:
        names = [factor.name for factor in FACTORS]
        batches = read_items(self._paths[f"{part}-dat.mat"], _read_image_header, start, start + len(factors))
        images = (image for pairs in batches for image in pairs[:, 0])  # the left one of each pair
        for number, (image, row) in enumerate(zip(images, factors.tolist(), strict=True), start=start):
            yield Sample(f"{split}-{number:05d}", self._resize(image), dict(zip(names, row, strict=True)), split)

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.image_size != _NATIVE:
            size = self.image_size, self.image_size
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        return image[..., None]

    def _count(self, part: str) -> int:
        count = read_shape(self._paths[f"{part}-dat.mat"], _read_image_header)[0]
        self._read_factors(part, count)
        return count

    def _read_factors(self, part: str, count: int) -> NDArray[np.int64]:
        """Index of each factor's value, (count, 5)."""
        files = [self._paths[f"{part}-cat.mat"], *[self._paths[f"{part}-info.mat"]] * 4]
        stored = np.column_stack([_read_integers(files[0], (count,)), _read_integers(files[1], (count, 4))])
        index, rest = np.divmod(stored.astype(np.int64), _STEPS)
        for column, factor in enumerate(FACTORS):
            odd = (rest[:, column] != 0) | (index[:, column] < 0) | (index[:, column] >= len(factor.values))
            if odd.any():
                value = stored[odd.argmax(), column]
                raise UserError(f"{files[column]} has the value {value} for {factor.name}: {FIX_HINT}")
        return index

    @property
    def _published(self) -> list[PublishedFile]:
        """The six files, of those that are there as they are, else as .gz."""
        return [
            PublishedFile(name, None, plain, _URL)
            if (self.folder / name).is_file()
            else PublishedFile(f"{name}.gz", None, compressed, _URL)
            for name, (plain, compressed) in FILES.items()
        ]

    @property
    def _paths(self) -> dict[str, Path]:
        return dict(zip(FILES, require(self.folder, "smallnorb", self._published), strict=True))


def _read_header(path: Path, file: BufferedIOBase, expected: int) -> tuple[int, ...]:
    """The shape in the header."""
    start = file.read(8)
    magic, rank = struct.unpack("<II", start) if len(start) == 8 else (0, 0)
    if magic != expected or not 1 <= rank <= 4:
        raise UserError(f"{path} is not a binary matrix of the expected type (magic number): {FIX_HINT}")
    sizes = file.read(4 * max(3, rank))
    if len(sizes) != 4 * max(3, rank):
        raise UserError(f"{path} ends in its header: {FIX_HINT}")
    return struct.unpack_from(f"<{rank}I", sizes)


def _read_image_header(path: Path, file: BufferedIOBase) -> tuple[int, ...]:
    shape = _read_header(path, file, _BYTES)
    if shape[1:] != (2, _NATIVE, _NATIVE):
        raise UserError(f"{path} has shape {shape}, not that of pairs of images 96x96: {FIX_HINT}")
    return shape


def _read_integers(path: Path, expected: tuple[int, ...]) -> NDArray[np.int32]:
    """All numbers of a small file."""
    with opened(path) as file:
        shape = _read_header(path, file, _INTEGERS)
        if shape != expected:
            raise UserError(f"{path} has shape {shape}, and the images need {expected}: {FIX_HINT}")
        content = file.read(4 * math.prod(shape) + 1)
    if len(content) != 4 * math.prod(shape):
        raise UserError(f"{path} has not as many numbers as its shape {shape} says: {FIX_HINT}")
    return np.frombuffer(content, "<i4").reshape(shape)
