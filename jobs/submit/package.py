"""What a submitted job takes along: this project's code, a preset of the user's, secrets."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import UserError
from jobs.submit import environment

_FLOORS = ("vlae", "jobs", "pipeline")
_PRESET = "submitted-preset.yaml"


@contextmanager
def packed(words: Sequence[str], secrets: Mapping[str, str]) -> Iterator[tuple[Path, list[str]]]:
    """A folder to be a job's working directory, for the time of a `with` block.

    Only what runs is in it, wherever this project is installed: no data, no tests, nothing else of the user's folder.
    No other user of this machine can read it.

    Args:
        words: of the command. A preset that is a file is taken along.
        secrets: environment variables by name.

    Yields:
        The folder, and the words as they are to be in it.

    Raises:
        UserError: the code or the preset cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="vlae-submit-") as name:
        folder = Path(name)
        try:
            for floor in _FLOORS:
                source = Path(__file__).resolve().parents[2] / floor
                shutil.copytree(source, folder / floor, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            there = [_take_along(word, folder) for word in words]
        except (OSError, shutil.Error) as error:
            culprit = getattr(error, "filename", None) or error
            reason = getattr(error, "strerror", None) or "cannot be read"
            raise UserError(f"{culprit}: {reason}; the job cannot be packed without it") from error
        if secrets:
            environment.write(folder, secrets)
        yield folder, there


def _take_along(word: str, folder: Path) -> str:
    key, _, value = word.partition("=")
    if key != "preset" or not value.endswith((".yaml", ".yml")):
        return word
    shutil.copyfile(value, folder / _PRESET)
    return f"preset={_PRESET}"
