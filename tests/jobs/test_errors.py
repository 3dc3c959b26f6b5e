"""Test messages: one line that a terminal shows as it is."""

import pickle

from jobs.errors import DecodeError, format_names


def test_user_error_message_is_one_printable_line() -> None:
    error = DecodeError("a\x1b[31m.png:\n  caf\udce9 \u00e9\u202e. Remove it.")
    assert str(error) == r"a\x1b[31m.png: caf\xe9 " + "\u00e9" + r"\u202e. Remove it."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_format_names_counts_the_rest() -> None:
    names = [f"{number}\n.png" for number in range(12)]
    assert format_names(names[:2]) == r"0\n.png, 1\n.png"
    assert format_names(names).endswith(r"9\n.png and 2 more")
    assert format_names(names[:10], 1500).endswith(r"9\n.png and 1,490 more")
