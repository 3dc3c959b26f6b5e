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

from jobs.errors import printable

HELP_FLAGS = frozenset({"--help", "-h", "help"})
# User and password before the host of an address, with or without a scheme. A password may contain / and @. Allowed are
# @ in the path of an address, as in s3://bucket/a@b, and models:/name@alias.
_CREDENTIALS = re.compile(
    r"//[^\s/@]*:\S*@|//[^\s/]*@|(?<![^\s=,|'\"])(?!\w+://|models:/)[^\s/@:=,|'\"]+:\S*@",
)
# Variables of MLflow and Ray that send results elsewhere than the settings say, delay them, or make Ray Tune fail.
_IGNORED_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
    "_MLFLOW_SERVER_ARTIFACT_ROOT",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_ENABLE_WORKSPACES",
    "MLFLOW_WORKSPACE",
    "MLFLOW_WORKSPACE_STORE_URI",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "RAY_AIR_LOCAL_CACHE_DIR",
    "TUNE_RESULT_DIR",
)


class UsageError(Exception):
    """An argument of the command is invalid. The message is one line with argument and fix; credentials are masked."""

    def __init__(self, message: str) -> None:
        super().__init__(mask_credentials(message))


def mask_credentials(text: str) -> str:
    """Return `text` with the credentials of every address masked: `http://user:secret@host` -> `http://***@host`."""
    return _CREDENTIALS.sub(lambda match: f"{'//' * match[0].startswith('//')}***@", text)


def has_credentials(text: str) -> bool:
    """Return whether a text contains an address with user name or password."""
    return _CREDENTIALS.search(text) is not None


def refuse_credentials(key: str, value: object) -> None:
    """Raise UsageError, without the value, if the value of a setting or the key itself contains credentials."""
    if has_credentials("".join(f"{key}={value}".split())):  # because a password may contain spaces
        name = key if re.fullmatch(r"[\w.-]+", key) else "argument"
        raise UsageError(
            f"{name}: credentials are not allowed, because settings end up in logs. Set environment variables, such as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Split `key=value` arguments, in their order; raise UsageError for another form, a repeated key or credentials."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        refuse_credentials(key, value)
        if not equals or not key:
            raise UsageError(f"{argument!r}: not key=value. See --help.")
        if key in overrides:
            raise UsageError(f"{key}: given twice, as {key}={overrides[key]} and {argument}. Keep one of them.")
        overrides[key] = value
    return overrides


def ignore_environment() -> None:
    """Remove variables of the environment that override settings, name them on stderr, and choose Ray Train V2."""
    ignored = [name for name in _IGNORED_VARIABLES if os.environ.pop(name, None) is not None]
    if ignored:
        print(f"environment variables ignored, because settings take precedence: {', '.join(ignored)}", file=sys.stderr)
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # Ray Train passes it to its workers


def fail(message: str, exit_code: int) -> int:
    """Print a message as one line on stderr, with control characters escaped, and return the exit code."""
    print(printable(" ".join(message.split())), file=sys.stderr, flush=True)
    return exit_code


def run_cli(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run `main` on the arguments, without the program's name, and exit with the code that it returns."""
    ignore_environment()
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
