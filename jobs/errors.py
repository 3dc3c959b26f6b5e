"""The error that a user can mend: shown as one line, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong; the message names the culprit and the mend."""
