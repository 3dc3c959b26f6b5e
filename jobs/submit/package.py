"""The package of a submitted job: this project's code, a preset file, secrets."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.cli import has_credentials
from jobs.errors import UserError, first_line, os_error_reason
from jobs.submit import environment

_PACKAGES = ("vlae", "jobs", "pipeline")
_PRESET = "submitted-preset.yaml"


@contextmanager
def job_package(overrides: Sequence[str], secrets: Mapping[str, str]) -> Iterator[tuple[Path, list[str]]]:
    """Build the working directory of a job, for the time of a `with` block.

    The folder holds only what the job runs, wherever this project is installed: no data and no tests. Other users of
    this machine cannot read it.

    Args:
        overrides: Arguments `key=value` of `pipeline.run`. A preset that is a file is copied into the folder.
        secrets: Environment variables by name.

    Yields:
        The folder, and the overrides with the preset's path in it.

    Raises:
        UserError: The code or the preset cannot be read, or the preset contains credentials.
    """
    with tempfile.TemporaryDirectory(prefix="vlae-submit-") as name:
        folder, arguments = Path(name), list(overrides)
        try:
            for package in _PACKAGES:
                source = Path(__file__).resolve().parents[2] / package
                shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            for index, override in enumerate(overrides):
                key, _, value = override.partition("=")
                if key == "preset" and value.endswith((".yaml", ".yml")):
                    content = Path(value).read_bytes()
                    if has_credentials(content.decode(errors="replace")):
                        raise UserError(f"preset={value}: contains credentials. Name environment variables in env=.")
                    (folder / _PRESET).write_bytes(content)
                    arguments[index] = f"preset={_PRESET}"
        except shutil.Error as error:
            raise UserError(f"cannot read the code of this project ({first_line(error)}). Check its files.") from error
        except OSError as error:
            raise UserError(f"{error.filename}: cannot read ({os_error_reason(error)}). Check the path.") from error
        if secrets:
            environment.write(folder, secrets)
        yield folder, arguments
