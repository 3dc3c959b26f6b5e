"""--minutes N: as many tests as fit into N minutes; another file comes first every day, so each has its turn."""

import time
from datetime import UTC, datetime
from itertools import groupby

import pytest

_BEGUN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes", type=float, help="skip the tests that would begin later, by name; see tests/minutes.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BEGUN] = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--minutes") is None:
        return
    files = [list(tests) for _, tests in groupby(items, lambda item: item.path)]
    first = datetime.now(UTC).toordinal() % max(1, len(files))
    items[:] = [item for tests in files[first:] + files[:first] for item in tests]


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.stash[_BEGUN] > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of this run are over")
