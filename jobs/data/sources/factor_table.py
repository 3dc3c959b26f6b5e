"""The table of factors of a folder of images, factors.csv."""

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from jobs.data.sources.base import factor_name_faults
from jobs.errors import UserError, first_line, os_error_reason, suggestion

TABLE = "factors.csv"


def read_factor_table(folder: Path, files: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the factors of each file by name, complete and in the order of the files; empty without factors.csv.

    The header is `file,NAME,NAME...`. Spaces around cells, `./`, backslashes, the Unicode normalization of paths and
    repeated equal rows make no difference.

    Args:
        folder: Folder of the table.
        files: Paths of the images below the folder, with slashes. A row of any other existing file is ignored.

    Raises:
        UserError: The table is not CSV in UTF-8, its header is invalid, or a row is missing, incomplete, contradicts
            another row or names no file. The message has the row, counted as in a spreadsheet.
    """
    path = folder / TABLE
    if not path.is_file():
        return {}
    rows = _read_rows(path)
    header = rows[0][1] if rows else []
    if header[:1] != ["file"] or len(header) < 2:
        raise UserError(f"{path}: invalid header {','.join(header)[:100]!r}. Begin with file,NAME,NAME... and commas.")
    for name, fault in factor_name_faults(header).items():
        raise UserError(f"{path}: invalid column {name[:100]!r}, which {fault}. Rename the column.")
    table: dict[str, dict[str, str]] = {}
    first_rows: dict[str, int] = {}
    find = _file_finder(files)
    for number, cells in rows[1:]:
        row = f"{path}: row {number}"
        if len(cells) > len(header):
            raise UserError(f"{row}: {len(cells)} cells under {len(header)} names. Quote values that contain commas.")
        file = find(cells[0])
        if file is None:
            if os.path.isfile(folder / cells[0]):  # noqa: PTH113  (Path.is_file raises for a name that is too long)
                continue
            hint = suggestion(cells[0], files, "Remove the row, or add the image.")
            raise UserError(f"{row}: no image {cells[0][:200]!r}. {hint}")
        # NFC, because values that look the same are the same value.
        values = [unicodedata.normalize("NFC", cell) for cell in cells[1:]]
        factors = dict(zip_longest(header[1:], values, fillvalue=""))
        for name, value in factors.items():
            if not value:
                raise UserError(f"{row}: {name} of {file!r} is empty. Add its value.")
        if table.setdefault(file, factors) != factors:
            raise UserError(f"{row}: {file!r} has other values than in row {first_rows[file]}. Remove one of the rows.")
        first_rows.setdefault(file, number)
    missing = [file for file in files if file not in table]
    if missing:
        others = f" and {len(missing) - 1:,} other images" if len(missing) > 1 else ""
        raise UserError(f"{path}: no row for {missing[0]!r}{others}. Add the rows, or remove the images.")
    return {file: table[file] for file in files}


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty with their numbers. Cells have no spaces around, and the last is not empty."""
    rows: list[tuple[int, list[str]]] = []
    number = 0
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:  # as in UTF-16 without a byte-order mark, which is valid UTF-8
            raise ValueError("it contains NUL characters")
        text = re.sub(r'"[ \t]+(?=[,\r\n]|\Z)', '"', text)  # because a strict reader refuses spaces after a quoted cell
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        for number, row in enumerate(reader, start=1):
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                rows.append((number, cells))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({os_error_reason(error)}). Check the file.") from error
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1} is not CSV ({first_line(error)}). Check its quotes.") from error
    except ValueError as error:
        raise UserError(f"{path}: not text in UTF-8 ({first_line(error)}). Save it as CSV in UTF-8.") from error
    return rows


def _file_finder(files: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function that returns the file that a cell of the table names, or None."""
    exact = set(files)
    normalized: dict[str, str | None] = {}  # None: several files differ in their Unicode normalization only
    for file in files:
        key = unicodedata.normalize("NFC", file).strip()
        normalized[key] = None if key in normalized else file

    def find(cell: str) -> str | None:
        path = posixpath.normpath(cell.replace("\\", "/"))
        for name in (cell, path):
            if name in exact:
                return name
        return normalized.get(unicodedata.normalize("NFC", path))

    return find
