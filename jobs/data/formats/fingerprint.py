"""Hash of the content of files. A file is read again only after a change."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.errors import UserError, os_error_reason
from jobs.files import file_sha256, parse_json_object, write_json

_THREADS = 8  # that hash files
_MAX_ENTRIES = 100_000
_CLOCK_STEP = 2 * 10**9  # nanoseconds after which a second change surely gets another time


def content_fingerprint(paths: Sequence[Path]) -> str:
    """Return a hash (hex) of names and contents, equal on every machine.

    A table in the user's cache folder has the hash of each file beside its size, times and inode at that moment. The
    table exists because a hash that notices every correction has to read whole files, which takes minutes.

    Raises:
        UserError: A file cannot be read.
    """
    table = _table_path()
    entries, now = _read_table(table) if table else {}, time.time_ns()
    keys = [str(path.absolute()) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        current = list(pool.map(_entry, paths, map(entries.get, keys)))
    new = {
        key: entry
        for key, entry in zip(keys, current, strict=True)
        if entry != entries.get(key) and now - max(entry[1:3]) > _CLOCK_STEP
    }
    if table and new:
        with suppress(OSError):  # because the table only saves time
            table.parent.mkdir(parents=True, exist_ok=True)
            write_json(table, dict(list((entries | new).items())[-_MAX_ENTRIES:]))
    hashes = [(path.name, entry[-1]) for path, entry in zip(paths, current, strict=True)]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _table_path() -> Path | None:
    """Return the path of the table, or None for a user without a home folder, as in some containers."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:
        return None
    return cache / "vlae-pipeline" / "sha256.json"


def _read_table(path: Path) -> dict[str, Any]:
    try:
        return parse_json_object(path.read_bytes())
    except OSError:
        return {}


def _entry(path: Path, previous: Any) -> list[Any]:
    """Return size, times, inode and sha256 of a file, which is read if the others differ from the previous entry."""
    try:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        unchanged = isinstance(previous, list) and previous[:-1] == state
        return previous if unchanged else [*state, file_sha256(path)]
    except OSError as error:
        raise UserError(
            f"{path}: cannot read ({os_error_reason(error)}). Check the file and its permissions."
        ) from error
