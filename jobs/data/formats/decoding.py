"""Errors of decoders of other libraries as UserErrors, and limits on the memory that a file may request."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import UserError, first_line, os_error_reason

MAX_DECODED = 2**28  # bytes that are decoded at once: a picture, a chunk, a member of a tar
_MAX_ROWS = 2**22  # of an array; the largest published dataset has a million images
_OF_THE_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)  # errors of a decoder, and of a seek to a damaged offset


@contextmanager
def decoding(label: Path | str, fix: str, error_type: type[UserError] = UserError) -> Iterator[None]:
    """Raise every exception of a decoder in the `with` block as a UserError of one line that names the file.

    There is no list of types, because a damaged length, type or name makes a decoder fail wherever its code uses it.

    Args:
        label: The file, or a member and its file.
        fix: Sentence that says what to do.
        error_type: DecodeError where the rest of the dataset may be fine.

    Yields:
        Nothing.

    Raises:
        UserError: The content cannot be decoded, or the system does not let this process read the file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_CONTENT:
            raise UserError(
                f"{label}: cannot read ({os_error_reason(error)}). Check the file and its permissions."
            ) from error
        raise error_type(f"{label}: cannot read ({first_line(error)}). {fix}") from error


def check_shape(shape: Sequence[int]) -> None:
    """Raise a ValueError for an array without values, of a negative size, or of more rows than any dataset has."""
    if min(shape, default=1) < 1 or max(shape, default=1) > _MAX_ROWS:
        raise ValueError(f"shape {tuple(shape)}: each size must be 1 to {_MAX_ROWS:,}")
