"""A folder of WebDataset tars that somebody else wrote; this project's own shards are read elsewhere."""

import hashlib
import io
import json
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.data.source import Factor, Sample
from jobs.data.sources.image_folder import FACTOR_NAME, natural
from jobs.data.sources.npz import read_npy_header
from jobs.data.sources.pictures import fit_square, read_picture
from jobs.data.sources.published import content_fingerprint
from jobs.data.sources.tar_stream import tar_members
from jobs.errors import UserError

ENDINGS = (".tar", ".tar.gz", ".tgz")
PICTURES = ("png", "jpg", "jpeg", "webp", "npy")  # the first of them that a sample has is its image
_LABELS = ("cls", "json")
_MOST_VALUES = 1000  # of a factor; what has more is a number or a text
_LONGEST_VALUE = 100  # characters
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and extension, as webdataset cuts them
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset leaves out


@dataclass
class _Labels:
    """The values of each factor that are found while the tars are read once."""

    values: dict[str, set[str]] | None = None  # None: no sample so far
    dropped: dict[str, str] = field(default_factory=dict)  # name -> why

    def add(self, labels: dict[str, str | None]) -> None:
        if self.values is None:
            self.values = {name: set() for name in labels}
        for name in [name for name in (*self.values, *labels) if name not in self.dropped]:
            value = labels.get(name)
            if name in labels and not FACTOR_NAME.fullmatch(name):
                self._drop(name, "its name has other than letters, digits, space, dot, _ and -")
            elif name not in labels or name not in self.values:
                self._drop(name, "not every sample has it")
            elif value is None:
                self._drop(name, "it has values other than whole numbers, short texts, true and false")
            else:
                self.values[name].add(value)
                if len(self.values[name]) > _MOST_VALUES:
                    self._drop(name, f"it has more than {_MOST_VALUES} values")

    def _drop(self, name: str, reason: str) -> None:
        if self.values is not None:
            self.values.pop(name, None)
        if len(self.dropped) < _MOST_VALUES:
            self.dropped[name] = reason

    def factors(self) -> tuple[Factor, ...]:
        ordered = {name: sorted(found, key=natural) for name, found in (self.values or {}).items()}
        return tuple(Factor(name, tuple(found)) for name, found in ordered.items())


@dataclass(frozen=True)
class _Catalogue:
    """What one pass over the tars found."""

    counts: tuple[int, ...]  # samples of each tar
    factors: tuple[Factor, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class WebDatasetTars:
    """Source of the samples of every tar below a folder, in the order of the tars' paths.

    A sample is a run of members with one key. Its image is .png, .jpg, .jpeg, .webp or .npy (uint8, height x
    width with 1, 3 or 4 channels or none), centre-cropped to a square and resized. Its factors are `class`,
    the whole number in .cls, and the whole numbers, short texts and truth values of a flat .json that every
    sample has, as text; what has more than 1000 different values is left out.

    Args:
        folder: where the tars are; .tar.gz and .tgz are read, too.
        image_size: height and width of the result, pixels.
        channels: 3 for colour, 1 for grey.
    """

    folder: Path
    image_size: int
    channels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    @cached_property
    def tars(self) -> tuple[str, ...]:
        """Paths below the folder, sorted.

        Raises:
            UserError: no folder, or no tar in it.
        """
        if not self.folder.is_dir():
            raise UserError(f"data.folder={self.folder} is not a folder: set it to one with WebDataset tars")
        found = (path for path in self.folder.rglob("*") if path.name.endswith(ENDINGS) and path.is_file())
        tars = tuple(sorted(path.relative_to(self.folder).as_posix() for path in found))
        if not tars:
            raise UserError(f"data.folder={self.folder} holds no tar ({', '.join(ENDINGS)})")
        return tars

    @cached_property
    def _catalogue(self) -> _Catalogue:
        """One pass over all tars, which keeps counts and values only.

        Raises:
            UserError: a tar is damaged, or holds a sample without an image or with odd labels.
        """
        labels = _Labels()
        counts = tuple(_catalogue_tar(self.folder / tar, labels) for tar in self.tars)
        if not sum(counts):
            raise UserError(f"data.folder={self.folder} holds tars without a sample: put others there")
        remarks = (f"{self.folder}: {name!r} is no factor, {reason}" for name, reason in labels.dropped.items())
        return _Catalogue(counts, labels.factors(), tuple(remarks))

    @property
    def factors(self) -> tuple[Factor, ...]:
        return self._catalogue.factors

    @property
    def num_samples(self) -> int:
        return sum(self._catalogue.counts)

    @cached_property
    def fingerprint(self) -> str:
        content = content_fingerprint([self.folder / tar for tar in self.tars])
        return f"webdataset-{self.image_size}-{self.channels}-{content}"

    @property
    def sequential(self) -> bool:
        return True

    def check(self) -> list[str]:
        return list(self._catalogue.remarks)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        first = 0
        for tar, count in zip(self.tars, self._catalogue.counts, strict=True):
            path, begin, end = self.folder / tar, max(start - first, 0), min(stop - first, count)
            first += count
            if begin >= end:
                continue
            for key, parts in islice(_samples(path, (*PICTURES, *_LABELS)), begin, end):
                labels = _labels_of(path, key, parts)
                places = {name: places[str(labels[name])] for name, places in index.items()}
                digest = hashlib.sha256(f"{tar}\0{key}".encode(errors="surrogateescape")).hexdigest()
                yield Sample(digest[:24], self._image(path, key, parts), places)

    def _image(self, path: Path, key: str, parts: dict[str, bytes]) -> NDArray[np.uint8]:
        extension = next(extension for extension in PICTURES if extension in parts)
        name = f"{path}: {key}.{extension}"
        if extension != "npy":
            return read_picture(io.BytesIO(parts[extension]), name, self.image_size, self.channels)
        return fit_square(_npy_image(parts[extension], name), self.image_size, self.channels)


def _catalogue_tar(path: Path, labels: _Labels) -> int:
    """Count the samples of a tar and note their labels."""
    digests = array("Q")  # eight bytes per sample, to see a key that comes twice
    for key, parts in _samples(path, _LABELS):
        if not any(extension in parts for extension in PICTURES):
            raise UserError(
                f"{path} has sample {key!r} with {', '.join(parts)} and without {' or '.join(PICTURES)}: "
                "write the members of a sample one after the other (tar --sort=name)"
            )
        labels.add(_labels_of(path, key, parts))
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
        digests.append(int.from_bytes(digest, "big"))
    if len(np.unique(np.frombuffer(digests, np.uint64))) != len(digests):
        raise UserError(f"{path} has samples of the same key: write each one's members together (tar --sort=name)")
    return len(digests)


def _samples(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample, by extension in lower case; empty those that are not wanted."""
    members = ((*_split(name), content) for name, content in tar_members(path, lambda name: _split(name)[1] in wanted))
    for key, group in groupby((member for member in members if member[0]), lambda member: member[0]):
        parts: dict[str, bytes] = {}
        for _, extension, content in group:
            if extension in parts:
                raise UserError(f"{path} holds {key}.{extension} twice: write the tar again without")
            parts[extension] = content or b""
        yield key, parts


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member, empty if webdataset leaves it out."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match and not _META.match(name) else ("", "")


def _labels_of(path: Path, key: str, parts: dict[str, bytes]) -> dict[str, str | None]:
    """Factor values as text, None where it is none."""
    try:
        table = json.loads(parts["json"]) if "json" in parts else {}
        labels = {name: _value_of(value) for name, value in table.items()} if isinstance(table, dict) else {}
        return labels | ({"class": str(int(parts["cls"]))} if "cls" in parts else {})
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the .json or .cls of {key} cannot be read ({error}): mend it") from error


def _value_of(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | str) and len(str(value)) <= _LONGEST_VALUE else None


def _npy_image(content: bytes, name: str) -> Image.Image:
    """An .npy of uint8 as a picture.

    Raises:
        UserError: it is of another shape or type.
    """
    stream = io.BytesIO(content)
    try:
        shape, dtype, fortran = read_npy_header(stream)
        if dtype != np.uint8 or len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (3,), (4,)}:
            raise ValueError(f"{dtype} {shape}, not uint8 (height, width) or (height, width, 1, 3 or 4)")
        pixels = np.frombuffer(content, np.uint8, math.prod(shape), stream.tell())
    except ValueError as error:
        raise UserError(f"{name} cannot be read as a picture ({error}): mend it or move it away") from error
    pixels = pixels.reshape(shape, order="F" if fortran else "C")
    return Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels)
