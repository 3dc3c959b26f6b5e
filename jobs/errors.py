"""The error that a user can mend: shown as one line, without a traceback."""

# What a message says where running it once more goes on; the command line knows the words.
AGAIN = "the same command"


class UserError(Exception):
    """Something outside the program is wrong; the message names the culprit and the mend."""


class UnavailableError(UserError):
    """A server does not answer, or not as it should: a later try may do."""


class TrainingError(UserError):
    """A training is its own trouble: its steps are not finite, its memory is full, its workers die."""


class CorruptedError(UserError):
    """Something that was written is missing, or not as it was written."""
