"""A folder of one's own pictures, with an optional table of factors."""

import csv
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jobs.data.formats.images import read_picture
from jobs.data.sources.base import Factor, Sample
from jobs.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg")
TABLE = "factors.csv"
FACTOR_NAME = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_. -]*")  # it becomes part of a metric's name


@dataclass(frozen=True)
class ImageFolder:
    """Source of every PNG and JPEG below a folder, in the order of their paths.

    Pictures are center-cropped to a square and resized. `factors.csv` has a header `file,NAME,NAME...`
    and a row per picture, by its path below the folder; the values of a column, sorted, are the factor's.

    Args:
        folder: where the pictures are.
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
    def files(self) -> tuple[str, ...]:
        """Paths below the folder, sorted.

        Raises:
            UserError: no folder, or no picture in it.
        """
        if not self.folder.is_dir():
            raise UserError(f"data.root={self.folder} is not a folder: set it to one with PNG or JPEG pictures")
        found = (path for path in self.folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        files = tuple(sorted(path.relative_to(self.folder).as_posix() for path in found))
        if not files:
            raise UserError(f"data.root={self.folder} holds no picture ({', '.join(EXTENSIONS)})")
        return files

    @cached_property
    def _table(self) -> dict[str, dict[str, str]]:
        """Path -> {factor: value}, complete for every picture, or empty when there is no table."""
        path = self.folder / TABLE
        if not path.is_file():
            return {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restkey="", restval="")
                names = list(reader.fieldnames or [])
                rows = {row.get("file"): {name: str(row[name]) for name in names[1:]} for row in reader}
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a table in UTF-8 ({error}): save it as CSV in UTF-8") from error
        if names[:1] != ["file"] or len(set(names)) != len(names) or len(names) < 2:
            raise UserError(f"{path} must begin with a line file,NAME,NAME... of distinct names, not {','.join(names)}")
        odd = [name for name in names if not FACTOR_NAME.fullmatch(name)]
        if odd:
            raise UserError(f"{path} has a column '{odd[0]}': name it with letters, digits, space, dot, _ and - only")
        for name in self.files:
            if name not in rows:
                raise UserError(f"{path} has no row for {name}: add one, or move the picture away")
            empty = [factor for factor, value in rows[name].items() if not value]
            if empty:
                raise UserError(f"{path} has no {empty[0]} for {name}: fill it in")
        return {name: rows[name] for name in self.files}

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        rows = list(self._table.values())
        names = rows[0] if rows else {}
        values = {name: sorted({row[name] for row in rows}, key=natural) for name in names}
        return tuple(Factor(name, tuple(found)) for name, found in values.items())

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

    @property
    def sequential(self) -> bool:
        return False

    def check(self) -> list[str]:
        return []

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        index = {factor.name: {value: i for i, value in enumerate(factor.values)} for factor in self.factors}
        for name in self.files[start:stop]:
            labels = {factor: index[factor][value] for factor, value in self._table.get(name, {}).items()}
            # A member name may hold neither the extension's dot nor a path: the hash keeps it unique.
            key = hashlib.sha256(name.encode()).hexdigest()[:24]
            path = self.folder / name
            yield Sample(key, read_picture(path, str(path), self.image_size, self.channels), labels)


def natural(value: str) -> tuple[float, str]:
    """Sort key: numbers by value and before words."""
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    # No order holds for what is no number.
    return (math.inf if math.isnan(number) else number), value
