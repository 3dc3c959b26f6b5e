"""Secrets of a submitted job: a private file in its package, loaded into the environment of each of its processes.

Ray writes the `env_vars` of a job to a log on every node, so secrets take this way instead. On the cluster this module
runs another one with them:

    python -m jobs.submit.environment MODULE ARGUMENT ...
"""

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

HOOK = "jobs.submit.environment.load"  # Ray calls it first in each worker process
_NAME = ".job-environment.json"


def write(package: Path, values: Mapping[str, str]) -> None:
    """Write variables into a package, in a new file that only its owner can read, also on the nodes."""
    # The salt prevents guessing values, because Ray logs a hash of the package.
    content = {"salt": secrets.token_hex(16), "values": dict(values)}
    descriptor = os.open(package / _NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)


def load() -> None:
    """Load the variables of the package that contains this module, if it has any."""
    path = Path(__file__).resolve().parents[2] / _NAME
    if path.exists():
        os.environ.update(json.loads(path.read_text())["values"])


if __name__ == "__main__":
    load()
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])  # noqa: S606  (no shell is wanted)
