"""A function in a process of its own with little memory.

oneDNN keeps a failed first use for the rest of its process, so a limit in pytest's own process would fail later tests.
"""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _limited(function: Callable[..., object], args: tuple[object, ...], megabytes: int, pipe: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, limits[1]))
    try:
        function(*args)
        pipe.send(("", "", ""))
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        pipe.send((type(error).__name__, str(error), str(error.__cause__)))


def error_with_limited_memory(megabytes: int, function: Callable[..., object], *args: object) -> tuple[str, str, str]:
    """Call a function in a new process that may allocate `megabytes` more than it has.

    Returns:
        Type, message and cause of the error that the function raised, empty if it returned.
    """
    context: Any = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(function, args, megabytes, sender))
    process.start()
    sender.close()
    try:
        result: tuple[str, str, str] = receiver.recv()
    finally:
        process.join()
        process.close()
        receiver.close()
    return result
