"""Helpers of the test servers: free ports, running processes, waiting with a deadline."""

import ipaddress
import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

# Below the ports that Linux gives to clients (32768 and up), because a killed server must find its port free again, and
# between the two ranges of the S3 server.
PORTS = range(22_700, 30_000)


class Process(NamedTuple):
    """A running process; zombies are left out."""

    pid: int
    parent: int
    group: int


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test because a program is not installed, but fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def is_free(port: int) -> bool:
    """Return whether a port of 127.0.0.1 can be bound."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a random free port of 127.0.0.1."""
    # The system's generator, because two test sessions with one seed would probe the same ports.
    return next(filter(is_free, random.SystemRandom().sample(PORTS, len(PORTS))))


def running_processes() -> Iterator[Process]:
    """Yield the processes of this machine."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # the process has just ended
            continue
        if state not in "ZX":
            yield Process(int(path.parent.name), int(parent), int(group))


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition until it is true or the time is over; return its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for process in running_processes():
        children.setdefault(process.parent, []).append(process.pid)
    tree = [pid]
    for member in tree:  # which grows while it is read
        tree += children.get(member, [])
    return tree


def listening_sockets(pids: Iterable[int]) -> dict[int, str]:
    """Return the TCP ports on which processes listen, and the address of each."""
    open_files = set()
    for link in itertools.chain.from_iterable(Path(f"/proc/{pid}/fd").glob("*") for pid in pids):
        with suppress(OSError):  # closed meanwhile
            open_files.add(str(link.readlink()))
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if state == "0A" and f"socket:[{inode}]" in open_files:  # LISTEN
                address, _, port = local.partition(":")
                packed = bytes.fromhex(address)  # words of four bytes, each in the machine's order
                ip = ipaddress.ip_address(b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4)))
                sockets[int(port, 16)] = str(getattr(ip, "ipv4_mapped", None) or ip)
    return sockets
