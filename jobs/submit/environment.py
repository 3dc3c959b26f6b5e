"""Secrets of a submitted job: a private file in its package, read into the environment of its processes.

Ray writes the `env_vars` of a job into a log on every node, so secrets do not go that way. This runs a module with
them, on a cluster:

    python -m jobs.submit.environment MODULE WORD ...
"""

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

HOOK = "jobs.submit.environment.load"  # what Ray calls in each worker process before anything else
_NAME = ".job-environment.json"


def write(package: Path, values: Mapping[str, str]) -> None:
    """Put variables into a package, in a file that only the owner can read; Ray keeps that on the nodes.

    Raises:
        FileExistsError: the package has some.
    """
    # Ray logs a hash of the package: with the salt nobody can try out values against it.
    content = {"salt": secrets.token_hex(16), "values": dict(values)}
    descriptor = os.open(package / _NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)


def load() -> None:
    """Read the variables of the package that this module lies in, if it has any."""
    path = Path(__file__).resolve().parents[2] / _NAME
    if path.exists():
        os.environ.update(json.loads(path.read_text())["values"])


if __name__ == "__main__":
    load()
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])  # noqa: S606  (no shell is wanted)
