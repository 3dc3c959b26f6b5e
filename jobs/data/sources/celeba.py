"""CelebA (Liu, Luo, Wang, Tang 2015), aligned faces: read out of the publisher's zip, which is never unpacked."""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jobs.data.formats.binary_arrays import FIX_HINT
from jobs.data.formats.published import PublishedFile, content_fingerprint, remarks, require
from jobs.data.sources.base import SPLITS, Factor, Sample
from jobs.errors import UserError

_URL = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FILES = (
    PublishedFile("img_align_celeba.zip", 1443490838, "00d2c5bc6d35e252742224ab0c1e8fcb", _URL),
    PublishedFile("list_attr_celeba.txt", None, "75e246fa4810816ffd6ee81facbd244c", _URL),
    PublishedFile("list_eval_partition.txt", None, "d32c9cbf5e040fd4025c592c306e6668", _URL),
)
_WIDTH, _HEIGHT = 178, 218
_MOST_BYTES = 2**20  # of one JPEG; the published ones have some 7 KB
_FACTOR_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # it becomes part of a metric's name
# What zipfile and Pillow raise where content is damaged, encrypted or compressed in a way they do not know.
_UNREADABLE = (
    zipfile.BadZipFile,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class _Table:
    """What the two lists say: a row per image, in the order of list_attr_celeba.txt."""

    names: tuple[str, ...]  # of the images
    attributes: tuple[str, ...]
    values: NDArray[np.uint8]  # (images, attributes), 0 or 1
    splits: NDArray[np.uint8]  # (images,), index into SPLITS


@dataclass(frozen=True)
class CelebA:
    """Source of the faces in color, 0 to 255; the factors are the attributes, each no or yes.

    Args:
        folder: holds img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt.
        crop: height and width that are cut out of the center of the 218x178 pixels, at most 178.
        image_size: height and width of the result, pixels.
    """

    folder: Path
    crop: int
    image_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(name, ("no", "yes")) for name in self._table.attributes)

    @property
    def num_samples(self) -> int:
        return len(self._table.names)

    @property
    def fingerprint(self) -> str:
        return f"celeba-{self.crop}-{self.image_size}-{content_fingerprint(self._paths)}"

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        with self._zip() as archive:
            names = [_base_name(member) for member in _pictures(archive)]
        _same_images(self._paths[0], names, self._paths[1], self._table.names)
        return remarks(self.folder, FILES)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        table = self._table
        with self._zip() as archive:
            members = {_base_name(member): member for member in _pictures(archive)}
            for number, name in enumerate(table.names[start:stop], start=start):
                if name not in members:
                    raise UserError(f"{self._paths[0]} has no {name}: {FIX_HINT}")
                image = self._load(archive, members[name], name)
                factors = dict(zip(table.attributes, table.values[number].tolist(), strict=True))
                yield Sample(f"{number + 1:06d}", image, factors, SPLITS[table.splits[number]])

    @property
    def _paths(self) -> list[Path]:
        return require(self.folder, "celeba", FILES)

    @cached_property
    def _table(self) -> _Table:
        _, attribute_file, split_file = self._paths
        names, attributes, values = _read_attributes(attribute_file)
        split_of = _read_partition(split_file)
        _same_images(split_file, list(split_of), attribute_file, names)
        splits = np.array([split_of[name] for name in names], np.uint8)
        return _Table(names, attributes, values, splits)

    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._paths[0])
        except _UNREADABLE as error:
            raise UserError(f"{self._paths[0]} is not a whole zip file ({error}): {FIX_HINT}") from error

    def _load(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[np.uint8]:
        """One face, (image_size, image_size, 3)."""
        left, top = (_WIDTH - self.crop) // 2, (_HEIGHT - self.crop) // 2
        try:
            with archive.open(member) as file:
                content = file.read(_MOST_BYTES)
            with Image.open(BytesIO(content), formats=("JPEG",)) as image:
                if image.size != (_WIDTH, _HEIGHT):
                    raise ValueError(f"{image.width}x{image.height} pixels, not {_WIDTH}x{_HEIGHT}")
                face = image.convert("RGB").crop((left, top, left + self.crop, top + self.crop))
        except UnidentifiedImageError as error:
            raise UserError(f"{name} in {self._paths[0]} is not a JPEG: {FIX_HINT}") from error
        except _UNREADABLE as error:
            raise UserError(f"{name} in {self._paths[0]} cannot be read ({error}): {FIX_HINT}") from error
        return np.asarray(face.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS), np.uint8)


def _pictures(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [member for member in archive.infolist() if member.filename.endswith(".jpg")]


def _base_name(member: zipfile.ZipInfo) -> str:
    return member.filename.rpartition("/")[2]


def _same_images(path: Path, names: list[str], other: Path, others: tuple[str, ...]) -> None:
    if sorted(names) != sorted(others):
        odd = min(set(names) ^ set(others), default="one twice")
        raise UserError(f"{path} and {other.name} do not list the same images ({odd!r}): take both from one release")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): {FIX_HINT}") from error


def _read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.uint8]]:
    """Names of the images, names of the attributes, and values (images, attributes), 0 or 1.

    The file has the count, the attributes' names, and a line per image: its name and a -1 or 1 for each.
    """
    lines = _read_lines(path)
    count, attributes = "".join(lines[:1]).strip(), tuple("".join(lines[1:2]).split())
    del lines[:2]
    odd = [name for name in attributes if not _FACTOR_NAME.fullmatch(name)]
    if count != str(len(lines)) or not attributes or odd or len(set(attributes)) != len(attributes):
        raise UserError(
            f"{path} does not begin with the number of its images, {len(lines)}, and a line of names of letters, "
            f"digits, dot, _ and -: {FIX_HINT}"
        )
    names, values = [], bytearray()
    for number, line in enumerate(lines, start=3):
        name, *row = line.split() or [""]
        if len(row) != len(attributes) or row.count("1") + row.count("-1") != len(row):
            raise UserError(f"{path} has no {len(attributes)} values of 1 or -1 in line {number}: {FIX_HINT}")
        names.append(name)
        values += bytes(value == "1" for value in row)
    return tuple(names), attributes, np.frombuffer(values, np.uint8).reshape(len(names), len(attributes))


def _read_partition(path: Path) -> dict[str, int]:
    """Name of an image -> index into SPLITS, which has the publisher's order."""
    found = {}
    for number, line in enumerate(_read_lines(path), start=1):
        name, _, split = line.strip().partition(" ")
        if split.strip() not in ("0", "1", "2") or name in found:
            raise UserError(f"{path} has no new image and its 0, 1 or 2 in line {number}: {FIX_HINT}")
        found[name] = int(split)
    return found
