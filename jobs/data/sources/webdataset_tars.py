"""A folder of WebDataset tars that somebody else wrote; this project's own shards are read elsewhere."""

import hashlib
import io
import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.data.formats.images import fit_square, read_picture
from jobs.data.formats.npz import read_npy_header
from jobs.data.formats.published import content_fingerprint
from jobs.data.formats.tar_stream import tar_samples
from jobs.data.sources.base import Factor, Sample
from jobs.data.sources.image_folder import FACTOR_NAME, natural
from jobs.errors import AGAIN, UserError

ENDINGS = (".tar", ".tar.gz", ".tgz")
PICTURES = ("png", "jpg", "jpeg", "webp", "npy")  # the first of them that a sample has is its image
_LABELS = ("cls", "json")
_MOST_VALUES = 1000  # of a factor; what has more is a number or a text
_LONGEST_VALUE = 100  # characters


@dataclass
class _Labels:
    """The values of each factor that are found while the tars are read once."""

    values: dict[str, set[str]] | None = None  # None: no sample so far
    dropped: dict[str, str] = field(default_factory=dict)  # name -> why

    def add(self, labels: dict[str, str | None]) -> None:
        if self.values is None:
            self.values = {name: set() for name in labels}
        for name in dict.fromkeys((*self.values, *labels)):
            if name in self.dropped:
                continue
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
class _Catalog:
    """What one pass over the tars found."""

    counts: tuple[int, ...]  # samples of each tar
    factors: tuple[Factor, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class WebDatasetTars:
    """Source of the samples of every tar below a folder, in the order of the tars' paths.

    A sample is a run of members with one key. Its image is .png, .jpg, .jpeg, .webp or .npy (uint8, height x
    width with 1, 3 or 4 channels or none), center-cropped to a square and resized. Its factors are `class`,
    the whole number in .cls, and the whole numbers, short texts and truth values of a flat .json that every
    sample has, as text; what has more than 1000 different values is left out.

    Args:
        folder: where the tars are; .tar.gz and .tgz are read, too.
        image_size: height and width of the result, pixels.
        channels: 3 for color, 1 for gray.
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
            raise UserError(f"data.root={self.folder} is not a folder: set it to one with WebDataset tars")
        found = (path for path in self.folder.rglob("*") if path.name.endswith(ENDINGS) and path.is_file())
        tars = tuple(sorted(path.relative_to(self.folder).as_posix() for path in found))
        if not tars:
            raise UserError(f"data.root={self.folder} holds no tar ({', '.join(ENDINGS)})")
        return tars

    @cached_property
    def _catalog(self) -> _Catalog:
        """One pass over all tars, which keeps counts and values only.

        Raises:
            UserError: a tar is damaged, or holds a sample without an image or with odd labels.
        """
        labels = _Labels()
        counts = tuple(_catalog_tar(self.folder / tar, labels) for tar in self.tars)
        if not sum(counts):
            raise UserError(f"data.root={self.folder} holds tars without a sample: put others there")
        remarks = (f"{self.folder}: {name[:50]!r} is no factor, {reason}" for name, reason in labels.dropped.items())
        return _Catalog(counts, labels.factors(), tuple(remarks))

    @property
    def factors(self) -> tuple[Factor, ...]:
        return self._catalog.factors

    @property
    def num_samples(self) -> int:
        return sum(self._catalog.counts)

    @cached_property
    def fingerprint(self) -> str:
        # The paths are part of the keys.
        paths = hashlib.sha256("\0".join(self.tars).encode(errors="surrogateescape")).hexdigest()
        content = content_fingerprint([self.folder / tar for tar in self.tars])
        return f"webdataset-{self.image_size}-{self.channels}-{paths}-{content}"

    @property
    def sequential(self) -> bool:
        return True

    def check(self) -> list[str]:
        return list(self._catalog.remarks)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        first = 0
        for tar, count in zip(self.tars, self._catalog.counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            first += count
            if begin < end:
                samples = islice(_samples(self.folder / tar, (*PICTURES, *_LABELS)), begin, end)
                for key, parts in samples:
                    yield self._sample(tar, key, parts, index)
                    begin += 1
                if begin < end:
                    raise UserError(f"{self.folder / tar} lost samples since the job began: run {AGAIN}")

    def _sample(self, tar: str, key: str, parts: dict[str, bytes], index: dict[str, dict[str | float, int]]) -> Sample:
        path = self.folder / tar
        labels = _labels_of(path, key, parts)
        try:
            places = {name: numbers[labels[name] or ""] for name, numbers in index.items()}
        except KeyError as error:
            raise UserError(f"{path} has other labels than when the job began: run {AGAIN}") from error
        digest = hashlib.sha256(f"{tar}\0{key}".encode(errors="surrogateescape")).hexdigest()
        extension = next(extension for extension in PICTURES if extension in parts)
        name = f"{path}: {key}.{extension}"
        if extension == "npy":
            image = fit_square(_npy_image(parts[extension], name), self.image_size, self.channels)
        else:
            image = read_picture(io.BytesIO(parts[extension]), name, self.image_size, self.channels)
        return Sample(digest[:24], image, places)


def _catalog_tar(path: Path, labels: _Labels) -> int:
    """Count the samples of a tar and note their labels."""
    digests = array("Q")  # eight bytes per sample, to see a key that comes twice
    for key, parts in _samples(path, _LABELS):
        labels.add(_labels_of(path, key, parts))
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
        digests.append(int.from_bytes(digest, "big"))
    if len(np.unique(np.frombuffer(digests, np.uint64))) != len(digests):
        raise UserError(f"{path} has samples of the same key: write each one's members together (tar --sort=name)")
    return len(digests)


def _samples(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for key, parts in tar_samples(path, wanted):
        if not any(extension in parts for extension in PICTURES):
            raise UserError(
                f"{path} has sample {key!r} with {', '.join(parts)} and without {' or '.join(PICTURES)}: "
                "write the members of a sample one after the other (tar --sort=name)"
            )
        yield key, parts


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
