"""Fixtures for a real browser and MLflow's own pages; conftest.py loads them for all tests."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from servers.processes import free_port, skip_or_fail, wait_for

BOOT_SECONDS = 60.0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the system."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        skip_or_fail("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def mlflow_ui(database: Path) -> Iterator[str]:
    """Run `mlflow ui` on the database of a workspace, as `make ui` does, and yield its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def answers() -> bool:
        assert server.poll() is None, "mlflow ui ended by itself"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return True
        except OSError:
            return False

    with subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{database}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            assert wait_for(answers, BOOT_SECONDS), "mlflow ui does not answer"
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def save_screenshot(page: Page, name: str) -> None:
    """Save a screenshot to the folder that the environment variable SCREENSHOTS names, if it is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def wait_until_loaded(page: Page, picture: Locator) -> None:
    """Wait until a picture is loaded, and wider than a placeholder."""
    picture.wait_for()
    page.wait_for_function("picture => picture.naturalWidth > 300", arg=picture.element_handle())
