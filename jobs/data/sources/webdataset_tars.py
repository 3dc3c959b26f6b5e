"""A folder of WebDataset tars that another tool wrote; `jobs.data.shard_reader` reads this project's own shards."""

import copy
import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from jobs.config import EXECUTION, AbsolutePath
from jobs.data.formats.decoding import decoding
from jobs.data.formats.fingerprint import content_fingerprint
from jobs.data.formats.images import EXTENSIONS, read_image, read_npy_image
from jobs.data.formats.tar_stream import SampleNames, count_other_type, tar_samples
from jobs.data.sources.base import (
    BaseDataConfig,
    BitDepth,
    Channels,
    Factor,
    ImageSize,
    Sample,
    Skipped,
    Source,
    factor_name_faults,
    ranges_by_file,
)
from jobs.data.sources.image_folder import in_natural_order
from jobs.data.sources.listing import Listing, describe_left_out, list_files
from jobs.errors import DecodeError, UserError

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
IMAGE_EXTENSIONS = (*EXTENSIONS, "npy")
_LABEL_EXTENSIONS = ("cls", "json")
_MAX_LABEL_BYTES = 2**20  # of a member, because JSON takes many times its size when it is parsed
_MAX_VALUES = 1000  # of a factor; a label with more values is a number or a text
_MAX_VALUE_LENGTH = 100  # characters


class WebdatasetConfig(BaseDataConfig):
    """WebDataset tars of other tools: PNG, JPEG, WebP, BMP, TIFF, GIF or .npy images with .cls or .json labels."""

    name: Literal["webdataset"] = "webdataset"
    root: AbsolutePath = Field(
        ..., description="folder of tars (.tar; also .gz, .bz2, .xz, .zst), at any depth", json_schema_extra=EXECUTION
    )
    image_size: ImageSize = Field(64, description="height and width in pixels after a central square crop and resizing")
    channels: Channels = Field(3, description="3 for color, 1 for gray")
    bit_depth: BitDepth = 0
    image_key: str = Field(
        "", description="extension of the image of a sample, such as jpg or seg.png; empty: a sample has one image only"
    )

    def open(self) -> "WebDatasetTars":
        return WebDatasetTars(self.root, self.image_size, self.channels, self.bit_depth, self.image_key.lower())


@dataclass
class _LabelCollector:
    """Collects the values of each factor while the tars are read once."""

    values: dict[str, set[str]] | None = None  # None before the first sample
    dropped: dict[str, str] = field(default_factory=dict)  # name -> reason

    def add(self, labels: dict[str, str | None]) -> None:
        if self.values is None:
            self.values = {name: set() for name in labels}
            for name, fault in factor_name_faults(labels).items():
                self._drop(name, f"its name {fault}")
        for name in dict.fromkeys((*self.values, *labels)):
            if name in self.dropped:
                continue
            value = labels.get(name)
            if name not in labels or name not in self.values:
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
    names: tuple[SampleNames, ...]  # of each tar
    factors: tuple[Factor, ...]
    warnings: list[str]
    left_out: Counter[str]


class _DottedNamesError(UserError):
    """Samples have no image if their keys end at the first dot, but have images with a dot before the extension."""


@dataclass(frozen=True)
class WebDatasetTars(Source):
    """Source of the samples of every tar below a folder, in the order of the tars' paths.

    A sample is a sequence of members with one key. Its image has one of IMAGE_EXTENSIONS (.npy: uint8, height x width
    with 1, 3 or 4 channels or none), or `image_key`, and is center-cropped to a square and resized. Its factors are
    `class`, the integer in .cls, and the integers, short texts and booleans of a flat .json that every sample has, as
    text. A label with more than 1000 different values is left out. Keys end at the first dot, as in webdataset, or at
    the last in a tar where each key would have no image otherwise.
    """

    folder: Path
    image_size: int
    channels: int
    bit_depth: int = 0
    image_key: str = ""
    exclude: tuple[Path, ...] = ()
    sequential = True

    def excluding(self, folders: Sequence[Path]) -> "WebDatasetTars":
        return replace(self, exclude=tuple(folders))

    @cached_property
    def _listing(self) -> Listing:
        return list_files(self.folder, TAR_EXTENSIONS, "WebDataset tars", exclude=self.exclude)

    @property
    def tars(self) -> tuple[str, ...]:
        """Sorted paths below the folder; without a folder or a tar, a UserError."""
        return self._listing.files

    @cached_property
    def _catalog(self) -> _Catalog:
        """Counts and factors, from one pass over all tars."""
        labels, left_out, counts, names = _LabelCollector(), Counter(self._listing.left_out), [], []
        for tar in self.tars:
            count, tar_names, labels, left_out = self._catalog_tar(self.folder / tar, labels, left_out)
            counts.append(count)
            names.append(tar_names)
        if not sum(counts):
            note = describe_left_out(left_out)
            raise UserError(
                f"data.root={self.folder}: the tars hold no sample{f'; {note}' if note else ''}. Set another folder."
            )
        warnings = [f"{self.folder}: {name[:50]!r} is no factor: {reason}." for name, reason in labels.dropped.items()]
        return _Catalog(tuple(counts), tuple(names), labels.factors(), warnings, left_out)

    @property
    def left_out(self) -> Mapping[str, int]:
        return self._catalog.left_out

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
        settings = f"{self.image_size}-{self.channels}-{self.bit_depth}-{self.image_key}"
        return f"webdataset-{settings}-{paths}-{content}"

    def validate(self) -> list[str]:
        return self._catalog.warnings

    def read(self, start: int, stop: int) -> Iterator[Sample | Skipped]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        for file, begin, end in ranges_by_file(self._catalog.counts, start, stop):
            tar, remaining = self.tars[file], end - begin
            selected = (*self._image_extensions, *_LABEL_EXTENSIONS)
            samples = tar_samples(self.folder / tar, selected, self._catalog.names[file])
            for key, members in islice(samples, begin, end):
                try:
                    yield self._sample(tar, key, members, index)
                except DecodeError as error:
                    yield Skipped.from_error(error, f"{tar}: {key}")
                remaining -= 1
            if remaining:
                raise self._changed(tar)

    @property
    def _image_extensions(self) -> tuple[str, ...]:
        return (self.image_key,) if self.image_key else IMAGE_EXTENSIONS

    def _catalog_tar(
        self, path: Path, labels: _LabelCollector, left_out: Counter[str]
    ) -> tuple[int, SampleNames, _LabelCollector, Counter[str]]:
        """Return the number of samples of a tar, the division of its names, and both collectors after this tar."""
        names = SampleNames(frozenset((*self._image_extensions, *_LABEL_EXTENSIONS)))
        attempt = copy.deepcopy((labels, left_out))
        try:
            return self._count_samples(path, names, *attempt), names, *attempt
        except _DottedNamesError as error:
            names, attempt = replace(names, last_dot=True), (labels, left_out)
            try:
                return self._count_samples(path, names, *attempt), names, *attempt
            except UserError:
                raise error from None

    def _count_samples(self, path: Path, names: SampleNames, labels: _LabelCollector, left_out: Counter[str]) -> int:
        keys = array("Q")  # eight bytes per sample, to detect duplicates
        without_image = ""
        for key, members in tar_samples(path, _LABEL_EXTENSIONS, names, left_out):
            images = [extension for extension in members if extension in self._image_extensions]
            others = [extension for extension in members if extension not in (*images, *_LABEL_EXTENSIONS)]
            if len(images) > 1:
                raise UserError(
                    f"{path}: sample {key!r} has {len(images)} images ({', '.join(images)}). Choose one, such as "
                    f"data.image_key={images[0]}."
                )
            if not images and others:
                raise _DottedNamesError(
                    f"{path}: sample {key!r} has {', '.join(members)}. Choose the image, such as "
                    f"data.image_key={others[0]}."
                )
            if not images:
                without_image = without_image or f"sample {key!r} has {', '.join(members)}"
            for extension in others:
                count_other_type(left_out, f".{extension}")
            with suppress(DecodeError):  # because `read` skips the sample
                labels.add(_read_labels(path, key, members))
            digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "big"))
        if len(np.unique(np.frombuffer(keys, np.uint64))) != len(keys):
            raise UserError(
                f"{path}: members of one sample are apart, or two samples have the same key. "
                "Write the members of each sample one after the other (tar --sort=name)."
            )
        if without_image:
            raise UserError(
                f"{path}: {without_image}, but no {' or '.join(self._image_extensions)}. Add its image or remove it."
            )
        return len(keys)

    def _changed(self, tar: str) -> UserError:
        return UserError(f"{self.folder / tar}: changed while it was read. Leave it unchanged.", retry=True)

    def _sample(
        self, tar: str, key: str, members: dict[str, bytes], index: dict[str, dict[str | float, int]]
    ) -> Sample:
        path = self.folder / tar
        labels = _read_labels(path, key, members)
        extension = next((extension for extension in members if extension in self._image_extensions), None)
        try:
            factors = {name: numbers[labels[name] or ""] for name, numbers in index.items()}
        except KeyError as error:
            raise self._changed(tar) from error
        if extension is None:
            raise self._changed(tar)
        digest = hashlib.sha256(f"{tar}\0{key}".encode(errors="surrogateescape")).hexdigest()
        content, label = members[extension], f"{path}: {key}.{extension}"
        if extension.rpartition(".")[2] == "npy":
            image = read_npy_image(content, label, self.image_size, self.channels)
        else:
            image = read_image(io.BytesIO(content), label, self.image_size, self.channels, self.bit_depth)
        return Sample(digest[:24], image, factors)


def _read_labels(path: Path, key: str, members: dict[str, bytes]) -> dict[str, str | None]:
    """Return labels as text, None where a label cannot be a factor value."""
    contents = {extension: members[extension] for extension in _LABEL_EXTENSIONS if extension in members}
    with decoding(f"{path}: .json or .cls of {key}", "Repair or remove it.", DecodeError):
        if max(map(len, contents.values()), default=0) > _MAX_LABEL_BYTES:
            raise ValueError(f"more than {_MAX_LABEL_BYTES:,} bytes")
        table = json.loads(contents["json"]) if "json" in contents else {}
        labels = {name: _to_text(value) for name, value in table.items()} if isinstance(table, dict) else {}
        return labels | ({"class": str(int(contents["cls"]))} if "cls" in contents else {})


def _to_text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | str) and len(str(value)) <= _MAX_VALUE_LENGTH else None
