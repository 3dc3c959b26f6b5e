"""How a command of this project ends: with its exit code, and without a word where nobody reads it any more."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call `main` with the words of the command line, and exit with the code that it returns."""
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)
