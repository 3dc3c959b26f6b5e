"""Errors that a user can fix. The command shows each as one line, without a traceback."""

# TODO(owners): `AGAIN` goes once every message leaves the hint to the command, which adds it where `retry` is true.
AGAIN = "the same command"


class UserError(Exception):
    """Something outside the program is wrong.

    The message is two sentences: `<setting or path>: <what is wrong>. <What to do.>` The command adds the hint to run it
    again where `retry` is true, so no message repeats that.

    Args:
        message: One line that names the cause and the fix.
        retry: Whether the same command can succeed without a change, because it continues where it stopped or because
            the cause may pass. Default: that of the class.

    Attributes:
        retry: See above.
    """

    retry: bool = False

    def __init__(self, message: str, *, retry: bool | None = None) -> None:
        super().__init__(message)
        if retry is not None:
            self.retry = retry


class UnavailableError(UserError):
    """A server does not answer or answers with an error that may pass."""

    retry = True


class TrainingError(UserError):
    """A training failed for reasons of its own: its loss is not finite, memory is full, or its workers ended."""


class CorruptedError(UserError):
    """A file that this program wrote is missing or differs from what was written."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name if the message is empty.

    Args:
        error: Exception of another library, whose message may be long.

    Returns:
        At most 300 characters.
    """
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def os_error_reason(error: OSError) -> str:
    """Return why the operating system refused, without the path: `No space left on device`.

    Args:
        error: Raised by a file or network operation.

    Returns:
        The reason of the operating system, or the first line of the message where there is none.
    """
    return error.strerror or first_line(error)
