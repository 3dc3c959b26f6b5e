"""CelebA, aligned faces: read out of the publisher's zip, which is never unpacked.

References:
    Liu, Luo, Wang, Tang: Deep Learning Face Attributes in the Wild, ICCV 2015, arXiv:1411.7766.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field

from jobs.config import AbsolutePath
from jobs.data.formats.decoding import decoding
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.published import FIX_HINT, PublishedFile, invalid_file, require, warnings
from jobs.data.sources.base import (
    SPLITS,
    BaseFilesConfig,
    Factor,
    ImageSize,
    Sample,
    Source,
    factor_name_faults,
    parse_integer,
    root_field,
)
from jobs.errors import UserError

_URL = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FILES = (
    PublishedFile("img_align_celeba.zip", 1443490838, "00d2c5bc6d35e252742224ab0c1e8fcb", _URL),
    PublishedFile("list_attr_celeba.txt", None, "75e246fa4810816ffd6ee81facbd244c", _URL),
    PublishedFile("list_eval_partition.txt", None, "d32c9cbf5e040fd4025c592c306e6668", _URL),
)
_WIDTH, _HEIGHT = 178, 218
_MAX_BYTES = 2**20  # of one JPEG; the published ones have about 7 KB


class CelebaConfig(BaseFilesConfig):
    """CelebA: 202,599 aligned faces in color with 40 attributes and the publisher's three splits."""

    name: Literal["celeba"] = "celeba"
    root: AbsolutePath = root_field("celeba", "img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt")
    validation_fraction: float = Field(
        0.0, ge=0, lt=0.5, description="fraction of the training split moved to the publisher's validation split"
    )
    crop: Annotated[Literal[148, 108], BeforeValidator(parse_integer)] = Field(
        148, description="height and width in pixels of the central crop of the 178x218 images"
    )
    image_size: ImageSize = Field(64, description="height and width in pixels after resizing the crop")

    def open(self) -> "CelebA":
        return CelebA(self.root, self.crop, self.image_size)


@dataclass(frozen=True)
class _Table:
    """The content of the two lists, a row per image in the order of list_attr_celeba.txt."""

    names: tuple[str, ...]  # of the images
    attributes: tuple[str, ...]
    values: NDArray[np.uint8]  # (images, attributes), 0 or 1
    splits: NDArray[np.uint8]  # (images,), index into SPLITS


@dataclass(frozen=True)
class CelebA(Source):
    """Source of the faces in color, 0 to 255; the factors are the attributes, each no or yes."""

    folder: Path
    crop: int
    image_size: int
    channels = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(name, ("no", "yes")) for name in self._table.attributes)

    @property
    def num_samples(self) -> int:
        return len(self._table.names)

    @cached_property
    def fingerprint(self) -> str:
        return f"celeba-{self.crop}-{self.image_size}-{content_fingerprint(self._paths)}"

    @property
    def _paths(self) -> list[Path]:
        return require(self.folder, "celeba", FILES)

    @cached_property
    def _table(self) -> _Table:
        _, attribute_file, split_file = self._paths
        names, attributes, values = _read_attributes(attribute_file)
        splits = _read_partition(split_file)
        _check_same_images(split_file, list(splits), attribute_file, names)
        return _Table(names, attributes, values, np.array([splits[name] for name in names], np.uint8))

    def validate(self) -> list[str]:
        with self._open_zip() as archive:
            names = [name for name, _ in _members(archive)]
        _check_same_images(self._paths[0], names, self._paths[1], self._table.names)
        return warnings(self.folder, FILES)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        table = self._table
        with self._open_zip() as archive:
            members = dict(_members(archive))
            for index, name in enumerate(table.names[start:stop], start=start):
                if name not in members:
                    raise UserError(invalid_file(self._paths[0], f"{name} not found"))
                image = self._load(archive, members[name], name)
                factors = dict(zip(table.attributes, table.values[index].tolist(), strict=True))
                yield Sample(f"{index + 1:06d}", image, factors, SPLITS[table.splits[index]])

    def _open_zip(self) -> zipfile.ZipFile:
        with decoding(self._paths[0], FIX_HINT):
            return zipfile.ZipFile(self._paths[0])

    def _load(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[np.uint8]:
        """Return one face, (image_size, image_size, 3)."""
        left, top = (_WIDTH - self.crop) // 2, (_HEIGHT - self.crop) // 2
        with decoding(f"{name} in {self._paths[0]}", FIX_HINT):
            with archive.open(member) as file:
                content = file.read(_MAX_BYTES)
            with Image.open(BytesIO(content), formats=("JPEG",)) as image:
                if image.size != (_WIDTH, _HEIGHT):
                    raise ValueError(f"{image.width}x{image.height} pixels instead of {_WIDTH}x{_HEIGHT}")
                face = image.convert("RGB").crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(face.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS), np.uint8)


def _members(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return the JPEGs with their names without folders."""
    jpegs = (member for member in archive.infolist() if member.filename.endswith(".jpg"))
    return [(member.filename.rpartition("/")[2], member) for member in jpegs]


def _check_same_images(path: Path, names: Sequence[str], other: Path, others: Sequence[str]) -> None:
    if sorted(names) != sorted(others):
        example = min(set(names) ^ set(others), default="a duplicate")
        raise UserError(invalid_file(path, f"lists other images than {other.name} (first difference: {example})"))


def _read_lines(path: Path) -> list[str]:
    with decoding(path, FIX_HINT):
        return path.read_text("utf-8").splitlines()


def _read_attributes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.uint8]]:
    """Return names of the images, names of the attributes, and values (images, attributes), 0 or 1."""
    # The file has the count, the attributes' names, and a line per image: its name and a -1 or 1 for each.
    lines = _read_lines(path)
    count, attributes = "".join(lines[:1]).strip(), tuple("".join(lines[1:2]).split())
    del lines[:2]
    if count != str(len(lines)) or not attributes:
        raise UserError(
            invalid_file(path, f"the first two lines are not {len(lines)}, the number of its images, and names")
        )
    for name, fault in factor_name_faults(attributes).items():
        raise UserError(invalid_file(path, f"the attribute {name!r} {fault}"))
    names, values = [], bytearray()
    for line_number, line in enumerate(lines, start=3):
        name, *row = line.split() or [""]
        if len(row) != len(attributes) or row.count("1") + row.count("-1") != len(row):
            raise UserError(invalid_file(path, f"line {line_number} has not {len(attributes)} values of 1 or -1"))
        names.append(name)
        values += bytes(value == "1" for value in row)
    return tuple(names), attributes, np.frombuffer(values, np.uint8).reshape(len(names), len(attributes))


def _read_partition(path: Path) -> dict[str, int]:
    """Return name of an image -> index into SPLITS, which has the publisher's order."""
    splits: dict[str, int] = {}
    for line_number, line in enumerate(_read_lines(path), start=1):
        name, _, split = line.strip().partition(" ")
        if split.strip() not in ("0", "1", "2") or name in splits:
            raise UserError(invalid_file(path, f"line {line_number} is not a new image with 0, 1 or 2"))
        splits[name] = int(split)
    return splits
