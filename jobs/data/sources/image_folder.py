"""A folder of the user's own images, with an optional table of factors."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.images import EXTENSIONS, read_image
from jobs.data.sources.base import BaseDataConfig, BitDepth, Channels, Factor, ImageSize, Sample, Skipped, Source
from jobs.data.sources.factor_table import TABLE, read_factor_table
from jobs.data.sources.listing import Listing, list_files
from jobs.errors import DecodeError

_ENDINGS = tuple(f".{extension}" for extension in EXTENSIONS)


class ImagesConfig(BaseDataConfig):
    """A folder of PNG, JPEG, WebP, BMP, TIFF and GIF images, at any depth, with an optional factors.csv."""

    name: Literal["images"] = "images"
    root: AbsolutePath = Field(..., description="folder of images; its factors.csv has columns file, factor, ...")
    image_size: ImageSize = Field(64, description="height and width in pixels after a central square crop and resizing")
    channels: Channels = Field(3, description="3 for color, 1 for gray")
    bit_depth: BitDepth = 0

    def open(self) -> "ImageFolder":
        return ImageFolder(self.root, self.image_size, self.channels, self.bit_depth)


@dataclass(frozen=True)
class ImageFolder(Source):
    """Source of every image file below a folder, center-cropped to a square and resized, in the order of their paths.

    Of a file with several frames or pages the first is read.

    `factors.csv` has a header `file,NAME,NAME...` and a row per image, by its path below the folder; the sorted values
    of a column are the values of the factor.
    """

    folder: Path
    image_size: int
    channels: int
    bit_depth: int = 0
    exclude: tuple[Path, ...] = field(default=(), repr=False)  # not in the fingerprint, which has the files

    def excluding(self, folders: Sequence[Path]) -> "ImageFolder":
        return replace(self, exclude=tuple(folders))

    @cached_property
    def _listing(self) -> Listing:
        return list_files(self.folder, _ENDINGS, "images", exclude=self.exclude, uncounted=(TABLE,))

    @property
    def files(self) -> tuple[str, ...]:
        """Sorted paths below the folder; without a folder or an image, a UserError."""
        return self._listing.files

    @property
    def left_out(self) -> Mapping[str, int]:
        return self._listing.left_out

    @cached_property
    def _table(self) -> dict[str, dict[str, str]]:
        """Path -> {factor: value}, complete for every image, or empty without factors.csv."""
        return read_factor_table(self.folder, self.files)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        rows = list(self._table.values())
        names = rows[0] if rows else {}
        return tuple(Factor(name, in_natural_order({row[name] for row in rows})) for name in names)

    @property
    def num_samples(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self!r}".encode())
        for name in (*self.files, *([TABLE] if self._table else [])):
            status = (self.folder / name).stat()
            entry = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(entry.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[Sample | Skipped]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        for name in self.files[start:stop]:
            labels = {factor: index[factor][value] for factor, value in self._table.get(name, {}).items()}
            # A hash, because a tar member name may hold neither the extension's dot nor a path.
            key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:24]
            path = self.folder / name
            try:
                image = read_image(path, str(path), self.image_size, self.channels, self.bit_depth)
            except DecodeError as error:
                yield Skipped.from_error(error, name)
            else:
                yield Sample(key, image, labels)


def in_natural_order(values: Iterable[str]) -> tuple[str, ...]:
    """Return texts sorted so that numbers are ordered by value and before other texts.

    Example:
        >>> in_natural_order(["10", "b", "9"])
        ('9', '10', 'b')
    """

    def key(value: str) -> tuple[float, str]:
        try:
            number = float(value)
        except ValueError:
            number = math.inf
        # NaN becomes infinity, because comparisons with NaN give no order.
        return (math.inf if math.isnan(number) else number), value

    return tuple(sorted(values, key=key))
