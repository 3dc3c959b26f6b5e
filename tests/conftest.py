"""Set the environment of every test, and write the session's datasets."""

import os
import signal
from pathlib import Path

import pytest

# Disabled, because Ray would write a token file into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from helpers.datasets import write_dataset

from jobs.data.sources.digits import DigitScenes, DigitsConfig

# Reset, because a background job of a shell starts with Ctrl-C ignored, and so would all child processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["servers.fixtures", "servers.tracking", "servers.browser"]


@pytest.fixture(scope="session")
def digits_config() -> DigitsConfig:
    return DigitsConfig(num_images=300, image_size=16, samples_per_task=120, validation_fraction=0.1, test_fraction=0.2)


@pytest.fixture(scope="session")
def digit_scenes(digits_config: DigitsConfig) -> DigitScenes:
    return digits_config.open()


@pytest.fixture(scope="session")
def digit_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a small sharded dataset; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_dataset(digit_scenes, folder, digits_config)
    return folder


@pytest.fixture(scope="session")
def png_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of the same dataset with PNG in its shards."""
    folder = tmp_path_factory.mktemp("data") / "png"
    write_dataset(digit_scenes, folder, digits_config.model_copy(update={"encoding": "png"}))
    return folder
