"""Errors that a user can fix. The command shows each as one line, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong.

    The message is two sentences: `<setting or path>: <what is wrong>. <What to do.>` The command appends the hint to
    run it again where `retry` is true, so no message repeats that.

    Args:
        message: One line that names the cause and the fix.
        retry: Whether the same command can succeed, because it resumes or the cause may pass. None: as the class says.
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
    """A training failed for a reason of its own: its loss is not finite, memory is full, or its workers ended."""


class CorruptedError(UserError):
    """A file that this program wrote is missing or differs from what was written."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters, or the type's name if there is none."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def os_error_reason(error: OSError) -> str:
    """Return why the system refused, without the path (`No space left on device`), else the message's first line."""
    return error.strerror or first_line(error)
