"""The command line: overrides, exit codes, signals, and numbers as text."""

import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

_CREDENTIALS = re.compile(r"//\S*@")  # a password may contain a slash


class UsageError(Exception):
    """An argument of the command is invalid. The message names the argument and the fix.

    Credentials in an address are masked, because messages end up in logs.

    Args:
        message: One line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(mask_credentials(message))


def mask_credentials(text: str) -> str:
    """Return `text` with the credentials of every address in it replaced: `http://user:secret@host` -> `http://***@host`.

    Args:
        text: Any text.

    Returns:
        The masked text.
    """
    return _CREDENTIALS.sub("//***@", text)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Split `key=value` arguments, in their order.

    Args:
        arguments: Arguments of a command, without its name.

    Returns:
        Values by key.

    Raises:
        UsageError: An argument is not `key=value`, or a key is given twice.

    Example:
        >>> parse_overrides(["train.steps=100", "data.root=a=b"])
        {'train.steps': '100', 'data.root': 'a=b'}
    """
    overrides: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"'{argument}' is not key=value. See --help.")
        if key in overrides:
            raise UsageError(f"{key}: given twice, as {key}={overrides[key]} and {argument}. Keep one of them.")
        overrides[key] = value
    return overrides


def run_cli(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call `main` with the words of the command line, and exit with the code that it returns."""
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the end of a `with` block, which should be short.

    Outside the main thread, which alone gets them, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {int(number): signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def format_number(value: float) -> str:
    """Four digits that mean something, and all those before the point: -14,428 and 0.02914."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"
