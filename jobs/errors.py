"""Errors that a user can fix. The command shows each as one line, without a traceback."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something outside the program is wrong.

    The message is two sentences: `<setting or path>: <what is wrong>. <What to do.>` The command appends the hint to
    run it again where `retry` is true, so no message repeats that.

    Args:
        message: One line that names the cause and the fix; line breaks become spaces, `printable` escapes the rest.
        retry: Whether the same command can succeed, because it resumes or the cause may pass. None: as for the class.
    """

    retry: bool = False

    def __init__(self, message: str, *, retry: bool | None = None) -> None:
        super().__init__(printable(" ".join(message.split())))
        if retry is not None:
            self.retry = retry


class UnavailableError(UserError):
    """A server does not answer or answers with an error that may pass."""

    retry = True


class TrainingError(UserError):
    """A training failed for a reason of its own: its loss is not finite, memory is full, or its workers ended."""


class DecodeError(UserError):
    """The content of one file or sample cannot be decoded; the rest of the dataset may be fine."""


class MissingSourceError(UserError):
    """The files of a data source are not there."""


class CorruptedError(UserError):
    """A file that this program wrote is missing or differs from what was written."""


def printable(text: str) -> str:
    r"""Return text with control characters and undecodable bytes escaped, for messages.

    Example:
        >>> print(printable("a\x1b[31m.png"), printable("caf\udce9.png"), printable("é.png"))
        a\x1b[31m.png caf\xe9.png é.png
    """
    return "".join(map(_printable_character, text))


def _printable_character(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python decodes a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char if char.isprintable() else ascii(char)[1:-1]


def format_names(names: Sequence[str], count: int | None = None) -> str:
    """Return the first ten names and the number of the others, for a message.

    Args:
        names: Names, or the first of them.
        count: Number of all names, if `names` are the first of them.
    """
    more = (len(names) if count is None else count) - len(names[:10])
    return ", ".join(map(printable, names[:10])) + (f" and {more:,} more" if more else "")


def suggestion(name: str, names: Iterable[str], otherwise: str) -> str:
    """Return the sentence that names the nearest valid name, or `otherwise` if none is near."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"Did you mean {matches[0]!r}?" if matches else otherwise


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters, or the type's name if there is none."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def os_error_reason(error: OSError) -> str:
    """Return why the system refused, without the path (`No space left on device`), else the message's first line."""
    return error.strerror or first_line(error)
