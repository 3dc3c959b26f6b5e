"""A folder of the user's own images, with an optional table of factors."""

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.config import AbsolutePath
from jobs.data.formats.images import read_image
from jobs.data.sources.base import BaseDataConfig, Channels, Factor, ImageSize, Sample, Source
from jobs.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg")
TABLE = "factors.csv"
FACTOR_NAME = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_. -]*")  # because it becomes part of metric names


class ImagesConfig(BaseDataConfig):
    """A folder of PNG and JPEG images, at any depth, with an optional factors.csv."""

    name: Literal["images"] = "images"
    root: AbsolutePath = Field(..., description="folder of images; its factors.csv has columns file, factor, ...")
    image_size: ImageSize = Field(64, description="height and width in pixels after a central square crop and resizing")
    channels: Channels = Field(3, description="3 for color, 1 for gray")

    def open(self) -> "ImageFolder":
        return ImageFolder(self.root, self.image_size, self.channels)


@dataclass(frozen=True)
class ImageFolder(Source):
    """Source of every PNG and JPEG below a folder, center-cropped to a square and resized, in the order of their paths.

    `factors.csv` has a header `file,NAME,NAME...` and a row per image, by its path below the folder; the sorted values
    of a column are the values of the factor.
    """

    folder: Path
    image_size: int
    channels: int

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Sorted paths below the folder; without a folder or an image, a UserError."""
        return find_below(self.folder, EXTENSIONS, "images")

    @cached_property
    def _table(self) -> dict[str, dict[str, str]]:
        """Path -> {factor: value}, complete for every image, or empty without factors.csv."""
        path = self.folder / TABLE
        if not path.is_file():
            return {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restkey="", restval="")
                names = list(reader.fieldnames or [])
                rows = {row.get("file"): {name: str(row[name]) for name in names[1:]} for row in reader}
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
        if names[:1] != ["file"] or len(set(names)) != len(names) or len(names) < 2:
            raise UserError(
                f"{path}: invalid header {','.join(names)}. Begin with file,NAME,NAME... of distinct names."
            )
        for name in names:
            if not FACTOR_NAME.fullmatch(name):
                raise UserError(f"{path}: invalid column '{name}'. Use only letters, digits, space, dot, _ and -.")
        for file_name in self.files:
            if file_name not in rows:
                raise UserError(f"{path}: no row for {file_name}. Add one or remove the image.")
            for name, value in rows[file_name].items():
                if not value:
                    raise UserError(f"{path}: {name} of {file_name} is empty. Add its value.")
        return {name: rows[name] for name in self.files}

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
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        for name in self.files[start:stop]:
            labels = {factor: index[factor][value] for factor, value in self._table.get(name, {}).items()}
            # A hash, because a tar member name may hold neither the extension's dot nor a path.
            key = hashlib.sha256(name.encode()).hexdigest()[:24]
            path = self.folder / name
            yield Sample(key, read_image(path, str(path), self.image_size, self.channels), labels)


def find_below(folder: Path, extensions: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """Return the sorted paths, below a folder, of files with these endings (lower case); none raises a UserError."""
    if not folder.is_dir():
        raise UserError(f"data.root={folder}: not a folder. Set it to a folder with {kind}.")
    matches = (path for path in folder.rglob("*") if path.name.lower().endswith(extensions) and path.is_file())
    paths = tuple(sorted(path.relative_to(folder).as_posix() for path in matches))
    if not paths:
        raise UserError(f"data.root={folder}: no {kind} ({', '.join(extensions)}). Add some or set another folder.")
    return paths


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
