"""What the test servers share: a port, who else runs of a server, how long to wait for one."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# Below those that Linux gives to clients (32768 and up), so that a killed server finds its port free; between those
# that the S3 server takes.
PORTS = range(22_700, 30_000)


class Process(NamedTuple):
    """One that runs: zombies, which only wait for their parent, are none."""

    pid: int
    parent: int
    group: int


def missing(what: str) -> None:
    """Skip the test for want of a program, but fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def free_port() -> int:
    # Not the shared generator: two test sessions with one seed would look at the same ports.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def running() -> Iterator[Process]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if state not in "ZX":
            yield Process(int(path.parent.name), int(parent), int(group))


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so, at most this long. Returns whether it is."""
    end = time.monotonic() + seconds
    while not (done := what()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for process in running():
        children.setdefault(process.parent, []).append(process.pid)
    tree, todo = [], [pid]
    while todo:
        tree.append(todo.pop())
        todo += children.get(tree[-1], [])
    return tree
