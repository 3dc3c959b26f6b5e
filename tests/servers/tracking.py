"""Fixtures for MLflow on a SQLite file; conftest.py loads them for all tests."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.config import TrackingConfig
from jobs.tracking.client import Tracker


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once because that takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(TrackingConfig(experiment="prepared"), folder)
    return folder / "mlflow.db"


@pytest.fixture
def tracker(empty_database: Path, tmp_path: Path) -> Tracker:
    """Client of an empty MLflow in the test's folder."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Tracker(TrackingConfig(), tmp_path)


@pytest.fixture
def client(tracker: Tracker, tmp_path: Path) -> MlflowClient:
    """MLflow's own client of the tracker's database."""
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
