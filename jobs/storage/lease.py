"""Ownership of a storage folder, so that two workspaces that share it never write there at once.

The owner is named by the object with the highest number of `owner-1.json`, `owner-2.json`, ... A new owner creates the
next one, which a storage with conditional writes admits once, and removes the older ones. The owner renews its object
every 20 s. Clocks are not compared: another command takes over after it has seen the object unchanged for 90 s, or at
once if its owner released it or has ended on the same machine. An owner that was suspended or cut off for longer finds
the newer object before its next write, and stops. A storage without conditional writes may admit two owners for a
moment: the one whose object was overwritten stops at its next check.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobs.errors import UserError
from jobs.files import parse_json_object
from jobs.storage.base import Storage

_RENEW_SECONDS, _EXPIRY_SECONDS = 20.0, 90.0
_FIELDS = {"owner", "workspace", "host", "machine", "pid", "started", "until"}
_RELEASE_SECONDS = 5.0  # how long the end of a command waits for a storage that does not answer


class LeaseLostError(UserError):
    """Another command has taken over a storage folder."""


class Lease:
    """Own a storage folder for the time of a `with` block; entering raises a UserError if another command owns it.

    Args:
        store: The folder.
        owner: Random name of the command.
        workspace: Workspace of the command, for the messages of others.
        on_wait: Called with the present owner while it is unknown whether that command still runs.
        renew_seconds: Time between two renewals.
        expiry_seconds: Time without a renewal after which the folder can be taken over.
    """

    def __init__(
        self,
        store: Storage,
        owner: str,
        workspace: str,
        on_wait: Callable[[str], None] = lambda _: None,
        *,
        renew_seconds: float = _RENEW_SECONDS,
        expiry_seconds: float = _EXPIRY_SECONDS,
    ) -> None:
        self._store, self._owner, self._on_wait = store, owner, on_wait
        self._renew_seconds, self._expiry_seconds = renew_seconds, expiry_seconds
        process = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started("self")}
        self._record: dict[str, Any] = {"owner": owner, "workspace": workspace, **process, "renewals": 0}
        self._number = 0
        self._lost: LeaseLostError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(_RELEASE_SECONDS)

    def check(self) -> None:
        """Raise LeaseLostError if a renewal found another owner."""
        if self._lost is not None:
            raise self._lost

    def _acquire(self) -> None:
        seen: bytes | None = None
        since = time.monotonic()
        while True:
            number, content = _newest(self._store)
            record = _parse(content)
            expired = content == seen and time.monotonic() - since > self._expiry_seconds
            free = record.get("released") or record.get("owner") == self._owner or _has_ended(record)
            if content is None or expired or free:
                self._number = number + 1
                own_content = self._content()
                if self._store.create(_name(self._number), own_content) == own_content:
                    break
                continue
            if seen not in (None, content) or record.get("machine") == self._record["machine"] != "":
                until = record.get("until", "an unknown time")
                raise UserError(
                    f"{self._store.url}: {_describe(record)} owns this training until {until}, or longer if that "
                    "command continues. Wait until it ends, or set another storage_path=."
                )
            if seen is None:
                seen, since = content, time.monotonic()
            self._on_wait(_describe(record))
            time.sleep(self._renew_seconds / 20)
        for number in _numbers(self._store):
            if number < self._number:
                self._store.remove(_name(number))

    def _run(self) -> None:
        while not self._closing.wait(self._renew_seconds):
            with suppress(UserError):  # a storage that does not answer is asked again
                if not self._renew():
                    return
        with suppress(UserError):
            self._record["released"] = True
            self._renew()

    def _renew(self) -> bool:
        """Return whether the folder is still owned, after the renewal."""
        try:
            check_owner(self._store, self._owner)
        except LeaseLostError as error:
            self._lost = error
            return False
        self._record["renewals"] += 1
        self._store.write(_name(self._number), self._content())
        return True

    def _content(self) -> bytes:
        until = datetime.now(UTC) + timedelta(seconds=self._expiry_seconds)
        return json.dumps({**self._record, "until": f"{until:%Y-%m-%d %H:%M:%S} UTC"}).encode()


def check_owner(store: Storage, owner: str) -> None:
    """Raise LeaseLostError if another command than `owner` owns a storage folder."""
    record = _parse(_newest(store)[1])
    if record.get("owner") != owner:
        raise LeaseLostError(
            f"{store.url}: {_describe(record)} has taken over this training, so this command has stopped writing. "
            "Wait until the other command ends."
        )


def _newest(store: Storage) -> tuple[int, bytes | None]:
    """Return the highest number of an owner's object, and its content; 0 and None if there is no owner."""
    while number := max(_numbers(store), default=0):
        if (content := store.read(_name(number))) is not None:  # a newer owner may have removed it meanwhile
            return number, content
    return 0, None


def _numbers(store: Storage) -> list[int]:
    names = [re.fullmatch(r"owner-(\d+)\.json", name) for name in store.names("owner-")]
    return [int(match[1]) for match in names if match]


def _name(number: int) -> str:
    return f"owner-{number}.json"


def _parse(content: bytes | None) -> dict[str, Any]:
    """Return the record of an owner; empty, which stands for an unknown command, if a field is missing."""
    record = parse_json_object(content or b"")
    return record if record.keys() >= _FIELDS else {}


def _describe(record: dict[str, Any]) -> str:
    if not record:
        return "an unknown command"
    return f"{record['workspace']} on {record['host']} (process {record['pid']})"


def _machine() -> str:
    """Return boot and PID namespace, which processes that see each other's process IDs share; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int | str) -> str:
    """Return when a process started, in ticks since boot, because process IDs are reused; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _has_ended(record: dict[str, Any]) -> bool:
    """Return whether the process of a record ran on this machine and has ended."""
    machine = _machine()
    return machine != "" and record.get("machine") == machine and _started(record["pid"]) != record["started"]
