"""`--minutes N`: as many tests as fit into N minutes.

The commit chooses which test file comes first: its hash, as a number, rotates the list of files. So a failed run can
be repeated with the same commit, and every file comes first at some commit. Tests that do not fit are skipped and
listed at the end.
"""

import subprocess
import time
from itertools import groupby

import pytest

from helpers import ROOT

_START = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", type=float, help="skip the tests that would start later; see tests/helpers/time_budget.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_START] = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--minutes") is None:
        return
    files = [list(tests) for _, tests in groupby(items, lambda item: item.path)]
    first = _commit_number() % max(1, len(files))
    items[:] = [item for tests in files[first:] + files[:first] for item in tests]


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.stash[_START] > 60 * minutes:
        item.config.stash.setdefault(_LEFT_OUT, []).append(item.nodeid)
        pytest.skip(f"the {minutes:g} minutes of this run are over")


_LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(_LEFT_OUT, []):
        terminalreporter.section(f"{len(left_out)} tests did not fit into the time")
        for nodeid in left_out:
            terminalreporter.line(nodeid)


def _commit_number() -> int:
    """Return the hash of the checked-out commit as a number, or 0 outside of a git checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(head, 16) if head else 0
