"""A folder of WebDataset tars that another tool wrote; `jobs.data.shard_reader` reads this project's own shards."""

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
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from jobs.config import EXECUTION, AbsolutePath
from jobs.data.formats.images import fit_square, invalid_image, read_image
from jobs.data.formats.npz import read_npy_header
from jobs.data.formats.published import content_fingerprint
from jobs.data.formats.tar_stream import tar_samples
from jobs.data.sources.base import BaseDataConfig, Channels, Factor, ImageSize, Sample, Source, ranges_by_file
from jobs.data.sources.image_folder import FACTOR_NAME, find_below, in_natural_order
from jobs.errors import UserError

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")  # the first of them that a sample has is its image
_LABEL_EXTENSIONS = ("cls", "json")
_MAX_VALUES = 1000  # of a factor; a label with more values is a number or a text
_MAX_VALUE_LENGTH = 100  # characters
_SORT_HINT = "Write the members of each sample one after the other (tar --sort=name)."


class WebdatasetConfig(BaseDataConfig):
    """WebDataset tars of other tools: PNG, JPEG, WebP or .npy images with .cls or .json labels."""

    name: Literal["webdataset"] = "webdataset"
    root: AbsolutePath = Field(
        ..., description="folder of tars (.tar, .tar.gz, .tgz), at any depth", json_schema_extra=EXECUTION
    )
    image_size: ImageSize = Field(64, description="height and width in pixels after a central square crop and resizing")
    channels: Channels = Field(3, description="3 for color, 1 for gray")

    def open(self) -> "WebDatasetTars":
        return WebDatasetTars(self.root, self.image_size, self.channels)


@dataclass
class _LabelCollector:
    """Collects the values of each factor while the tars are read once."""

    values: dict[str, set[str]] | None = None  # None before the first sample
    dropped: dict[str, str] = field(default_factory=dict)  # name -> reason

    def add(self, labels: dict[str, str | None]) -> None:
        if self.values is None:
            self.values = {name: set() for name in labels}
        for name in dict.fromkeys((*self.values, *labels)):
            if name in self.dropped:
                continue
            value = labels.get(name)
            if name in labels and not FACTOR_NAME.fullmatch(name):
                self._drop(name, "its name has characters other than letters, digits, space, dot, _ and -")
            elif name not in labels or name not in self.values:
                self._drop(name, "not every sample has it")
            elif value is None:
                self._drop(name, "it has values other than integers, short texts, true and false")
            else:
                self.values[name].add(value)
                if len(self.values[name]) > _MAX_VALUES:
                    self._drop(name, f"it has more than {_MAX_VALUES} values")

    def _drop(self, name: str, reason: str) -> None:
        if self.values is not None:
            self.values.pop(name, None)
        if len(self.dropped) < _MAX_VALUES:
            self.dropped[name] = reason

    def factors(self) -> tuple[Factor, ...]:
        return tuple(Factor(name, in_natural_order(texts)) for name, texts in (self.values or {}).items())


@dataclass(frozen=True)
class _Catalog:
    """Result of one pass over the tars."""

    counts: tuple[int, ...]  # samples of each tar
    factors: tuple[Factor, ...]
    warnings: list[str]


@dataclass(frozen=True)
class WebDatasetTars(Source):
    """Source of the samples of every tar below a folder, in the order of the tars' paths.

    A sample is a sequence of members with one key. Its image is .png, .jpg, .jpeg, .webp or .npy (uint8, height x width
    with 1, 3 or 4 channels or none), center-cropped to a square and resized. Its factors are `class`, the integer in
    .cls, and the integers, short texts and booleans of a flat .json that every sample has, as text. A label with more
    than 1000 different values is left out.
    """

    folder: Path
    image_size: int
    channels: int
    sequential = True

    @cached_property
    def tars(self) -> tuple[str, ...]:
        """Sorted paths below the folder; without a folder or a tar, a UserError."""
        return find_below(self.folder, TAR_EXTENSIONS, "WebDataset tars")

    @cached_property
    def _catalog(self) -> _Catalog:
        """Counts and factors, from one pass over all tars."""
        labels = _LabelCollector()
        counts = tuple(_catalog_tar(self.folder / tar, labels) for tar in self.tars)
        if not sum(counts):
            raise UserError(f"data.root={self.folder}: the tars hold no sample. Set another folder.")
        warnings = [f"{self.folder}: {name[:50]!r} is no factor: {reason}." for name, reason in labels.dropped.items()]
        return _Catalog(counts, labels.factors(), warnings)

    @property
    def factors(self) -> tuple[Factor, ...]:
        return self._catalog.factors

    @property
    def num_samples(self) -> int:
        return sum(self._catalog.counts)

    @cached_property
    def fingerprint(self) -> str:
        # The paths enter because they are part of the keys.
        paths = hashlib.sha256("\0".join(self.tars).encode(errors="surrogateescape")).hexdigest()
        content = content_fingerprint([self.folder / tar for tar in self.tars])
        return f"webdataset-{self.image_size}-{self.channels}-{paths}-{content}"

    def validate(self) -> list[str]:
        return self._catalog.warnings

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        for file, begin, end in ranges_by_file(self._catalog.counts, start, stop):
            tar, remaining = self.tars[file], end - begin
            samples = _iterate_samples(self.folder / tar, (*IMAGE_EXTENSIONS, *_LABEL_EXTENSIONS))
            for key, members in islice(samples, begin, end):
                yield self._sample(tar, key, members, index)
                remaining -= 1
            if remaining:
                raise self._changed(tar)

    def _changed(self, tar: str) -> UserError:
        return UserError(f"{self.folder / tar}: changed while it was read. Leave it unchanged.", retry=True)

    def _sample(
        self, tar: str, key: str, members: dict[str, bytes], index: dict[str, dict[str | float, int]]
    ) -> Sample:
        path = self.folder / tar
        labels = _read_labels(path, key, members)
        try:
            factors = {name: numbers[labels[name] or ""] for name, numbers in index.items()}
        except KeyError as error:
            raise self._changed(tar) from error
        digest = hashlib.sha256(f"{tar}\0{key}".encode(errors="surrogateescape")).hexdigest()
        extension = next(extension for extension in IMAGE_EXTENSIONS if extension in members)
        content, label = members[extension], f"{path}: {key}.{extension}"
        if extension == "npy":
            image = _read_npy_image(content, label, self.image_size, self.channels)
        else:
            image = read_image(io.BytesIO(content), label, self.image_size, self.channels)
        return Sample(digest[:24], image, factors)


def _catalog_tar(path: Path, labels: _LabelCollector) -> int:
    """Count the samples of a tar and collect their labels."""
    digests = array("Q")  # eight bytes per sample, to detect duplicate keys
    for key, members in _iterate_samples(path, _LABEL_EXTENSIONS):
        labels.add(_read_labels(path, key, members))
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
        digests.append(int.from_bytes(digest, "big"))
    if len(np.unique(np.frombuffer(digests, np.uint64))) != len(digests):
        raise UserError(f"{path}: samples with the same key. {_SORT_HINT}")
    return len(digests)


def _iterate_samples(path: Path, selected: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for key, members in tar_samples(path, selected):
        if not any(extension in members for extension in IMAGE_EXTENSIONS):
            extensions = ", ".join(members)
            raise UserError(
                f"{path}: sample {key!r} has {extensions}, but no {' or '.join(IMAGE_EXTENSIONS)}. {_SORT_HINT}"
            )
        yield key, members


def _read_labels(path: Path, key: str, members: dict[str, bytes]) -> dict[str, str | None]:
    """Return labels as text, None where a label cannot be a factor value."""
    try:
        table = json.loads(members["json"]) if "json" in members else {}
        labels = {name: _to_text(value) for name, value in table.items()} if isinstance(table, dict) else {}
        return labels | ({"class": str(int(members["cls"]))} if "cls" in members else {})
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the .json or .cls of {key} ({error}). Repair or remove it.") from error


def _to_text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | str) and len(str(value)) <= _MAX_VALUE_LENGTH else None


def _read_npy_image(content: bytes, label: str, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Return an .npy of uint8 as an image of (image_size, image_size, channels)."""
    stream = io.BytesIO(content)
    try:
        shape, dtype, fortran = read_npy_header(stream)
        if dtype != np.uint8 or len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (3,), (4,)}:
            raise ValueError(f"{dtype} {shape} instead of uint8 (height, width) or (height, width, 1, 3 or 4)")
        pixels = np.frombuffer(content, np.uint8, math.prod(shape), stream.tell())
    except ValueError as error:
        raise UserError(invalid_image(label, error)) from error
    pixels = pixels.reshape(shape, order="F" if fortran else "C")
    return fit_square(Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels), image_size, channels)
