"""Environment of every test, and the session's datasets."""

import os
import signal
from pathlib import Path

import pytest

# No token file in the home folder of whoever runs the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from helpers.datasets import write_dataset

from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes

# A shell's background job starts with Ctrl-C ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["helpers.time_budget", "servers.fixtures", "servers.tracking", "servers.browser"]


@pytest.fixture(scope="session")
def digits_config() -> DigitsConfig:
    return DigitsConfig(num_images=300, image_size=16, samples_per_task=120, validation_fraction=0.1, test_fraction=0.2)


@pytest.fixture(scope="session")
def digit_scenes(digits_config: DigitsConfig) -> DigitScenes:
    return DigitScenes(digits_config.num_images, digits_config.image_size, digits_config.channels, 0)


@pytest.fixture(scope="session")
def digit_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small sharded dataset; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_dataset(digit_scenes, folder, digits_config)
    return folder


@pytest.fixture(scope="session")
def png_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with PNG in its shards."""
    folder = tmp_path_factory.mktemp("data") / "png"
    write_dataset(digit_scenes, folder, digits_config.model_copy(update={"encoding": "png"}))
    return folder
