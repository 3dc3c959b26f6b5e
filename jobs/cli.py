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
    """An argument of the command is invalid. The message is one line with argument and fix; credentials are masked."""

    def __init__(self, message: str) -> None:
        super().__init__(mask_credentials(message))


def mask_credentials(text: str) -> str:
    """Return `text` with the credentials of every address masked: `http://user:secret@host` -> `http://***@host`."""
    return _CREDENTIALS.sub("//***@", text)


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Split `key=value` arguments, in their order; raise UsageError for another form or a repeated key."""
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
    """Run `main` on the arguments, without the program's name, and exit with the code that it returns."""
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the end of a short `with` block, which is protected in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {
        signum: signal.signal(signum, lambda received_signum, _: received.append(received_signum))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for received_signum in received[:1]:
        signal.raise_signal(received_signum)


def format_number(value: float) -> str:
    """Return a number as text with four significant digits, or all its integer digits if there are more.

    Example:
        >>> format_number(-14428.4), format_number(0.029137)
        ('-14,428', '0.02914')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """Return a duration as text in seconds, minutes or hours.

    Example:
        >>> format_duration(4.21), format_duration(185), format_duration(7800)
        ('4.2 s', '3:05 min', '2:10:00 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d} h" if hours else f"{minutes}:{remainder:02d} min"
