"""The command line: exit codes, signals, numbers as text."""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn


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
