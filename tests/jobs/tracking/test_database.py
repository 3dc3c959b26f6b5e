"""MLflow's database of a workspace: killed, raced, upgraded, moved and copied."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import mlflow.store.db_migrations
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from helpers.commands import relocate
from mlflow.entities import Dataset
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import create_engine

from jobs.config import TrackingConfig
from jobs.errors import UserError
from jobs.files import file_lock
from jobs.tracking import database
from jobs.tracking.client import Tracker
from jobs.tracking.database import prepare_database, update_artifact_locations

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
REVISION = "SELECT version_num FROM alembic_version"


def ignore(message: str) -> None:
    pass


def execute(path: Path, *statements: str) -> list[tuple[str]]:
    """Return the rows of the last statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def workspace(empty_database: Path, tmp_path: Path) -> Path:
    """A workspace with an empty database."""
    folder = tmp_path / "ws"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    prepare_database(folder, ignore)
    return folder


def test_prepare_database_after_kills_creates_it(tmp_path: Path, empty_database: Path) -> None:
    """Killed children leave a whole database or none, and what they leave is removed."""
    program = [sys.executable, "-m", "helpers.kill_database", str(tmp_path), "4", "1.2"]
    subprocess.run(
        program, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True, capture_output=True
    )
    (tmp_path / ".mlflow.db.other").touch()
    prepare_database(tmp_path, ignore)
    assert names(tmp_path) == {"locks", "mlflow.db", ".mlflow.db.other"}
    assert execute(tmp_path / "mlflow.db", REVISION) == execute(empty_database, REVISION)


def test_prepare_database_replaces_an_unfinished_one(workspace: Path, empty_database: Path) -> None:
    """What a kill of MLflow's own migrations leaves, without any run."""
    path = workspace / "mlflow.db"
    execute(path, "CREATE TABLE _alembic_tmp_runs (id INT)", "DROP TABLE logged_models", "DELETE FROM alembic_version")
    prepare_database(workspace, ignore)
    assert execute(path, REVISION) == execute(empty_database, REVISION)
    Tracker(TrackingConfig(), workspace).start_run("r", {}, DATASET, key="k")


@pytest.mark.slow
def test_prepare_database_upgrades_an_older_one(tmp_path: Path, empty_database: Path) -> None:
    """An upgrade was killed before. The previous database is kept; a program that has it open sees the new one."""
    path = tmp_path / "mlflow.db"
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.store.db_migrations.__file__).parent))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{path}")
    InitialBase.metadata.create_all(create_engine(f"sqlite:///{path}"))
    older = ScriptDirectory.from_config(config).get_revision("head").down_revision
    command.upgrade(config, older)
    experiment = "INSERT INTO experiments (experiment_id, name, workspace) VALUES (7, 'mine', 'default')"
    execute(path, experiment, "CREATE TABLE _alembic_tmp_jobs (id TEXT)")
    messages: list[str] = []
    with closing(sqlite3.connect(path)) as other:
        other.execute(REVISION).fetchall()
        prepare_database(tmp_path, messages.append)
        assert other.execute(REVISION).fetchall() == execute(empty_database, REVISION)
    assert execute(path, "SELECT name FROM experiments WHERE experiment_id = 7") == [("mine",)]
    assert execute(tmp_path / f"mlflow.db.{older}", REVISION) == [(older,)]
    assert names(tmp_path) == {"locks", "mlflow.db", f"mlflow.db.{older}"}
    assert [f"mlflow.db.{older}" in message for message in messages] == [True]


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["UPDATE alembic_version SET version_num = 'ffffffffffff'"], "newer MLflow"),
        (["INSERT INTO experiments (experiment_id, name) VALUES (7, 'x')", "DELETE FROM alembic_version"], "upgrade"),
    ],
)
def test_prepare_database_unusable_raises(workspace: Path, statements: list[str], reason: str) -> None:
    """The database stays as it is."""
    path = workspace / "mlflow.db"
    execute(path, *statements)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{reason}"):
        prepare_database(workspace, ignore)
    assert path.read_bytes() == before
    assert names(workspace) == {"locks", "mlflow.db"}


def test_prepare_database_in_use_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.2)
    with closing(sqlite3.connect(workspace / "mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"mlflow\.db: ") as caught:
            prepare_database(workspace, ignore)
    assert caught.value.retry


def test_prepare_database_waits_for_another_command(workspace: Path) -> None:
    waits = threading.Event()
    thread = threading.Thread(target=prepare_database, args=(workspace, lambda message: waits.set()))
    with file_lock(workspace / "locks" / "mlflow.db", wait=False):
        thread.start()
        assert waits.wait(60)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()


def test_experiment_that_another_command_creates_is_used(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = tracker.client.create_experiment("vlae")
    lookup = tracker.client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(tracker.client, "get_experiment_by_name", lambda name: next(answers, lookup(name)))
    assert tracker.experiment == existing


def test_tracker_ignores_the_registry_of_the_environment(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/other.db")
    Tracker(TrackingConfig(), workspace).client.create_registered_model("digits")
    assert execute(workspace / "mlflow.db", "SELECT name FROM registered_models") == [("digits",)]
    assert names(tmp_path) == {"ws"}


FOREIGN = "file:///elsewhere/mlartifacts"


@pytest.fixture
def used(workspace: Path) -> str:
    """The ID of a run with an artifact, of a workspace with a registered version and a foreign experiment."""
    tracker = Tracker(TrackingConfig(), workspace)
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    (workspace / "note.txt").write_text("content")
    tracker.log_file(run_id, workspace / "note.txt")
    model = tracker.client.create_logged_model(tracker.experiment, name="m", source_run_id=run_id)
    tracker.client.create_registered_model("digits")
    source = f"models:/{model.model_id}"
    tracker.client.create_model_version("digits", source, run_id, model_id=model.model_id)
    trace = f"'mlflow.artifactLocation', '{workspace.as_uri()}/mlartifacts/traces/1/artifacts', '1'"
    execute(workspace / "mlflow.db", f"INSERT INTO trace_tags (key, value, request_id) VALUES ({trace})")
    tracker.client.create_experiment("foreign", FOREIGN)
    tracker.client.create_experiment("neighbor", (workspace.parent / "ws" / "mlartifacts-2").as_uri())
    return run_id


@pytest.mark.parametrize("change", ["move", "copy", "replace"])
def test_prepare_database_moved_updates_locations(workspace: Path, used: str, tmp_path: Path, change: str) -> None:
    """All locations in the old artifact folder, and no others, name the new one; the original stays as it is."""
    before, moved = (workspace / "mlflow.db").read_bytes(), tmp_path / "new name"
    relocate(workspace, moved, change)
    messages: list[str] = []
    update_artifact_locations(moved, messages.append)
    assert prepare_database(moved, messages.append) == (moved / "mlartifacts").as_uri()
    assert [f"from {workspace}:" in message for message in messages] == [True]
    content = "\n".join(sqlite3.connect(moved / "mlflow.db").iterdump())
    assert f"{workspace.as_uri()}/mlartifacts/" not in content
    assert {FOREIGN, f"{workspace.as_uri()}/mlartifacts-2"} <= set(re.findall(r"file://[^']*", content))
    client = Tracker(TrackingConfig(), moved).client
    assert Path(client.download_artifacts(used, "note.txt")).read_text() == "content"
    model = client.get_logged_model(client.get_model_version("digits", "1").source.removeprefix("models:/"))
    for location in (client.get_run(used).info.artifact_uri, model.artifact_location):
        assert location.startswith(f"{moved.as_uri()}/mlartifacts/")
    assert workspace.exists() == (change == "copy")
    if change == "copy":
        assert (workspace / "mlflow.db").read_bytes() == before


def test_prepare_database_through_a_link_changes_nothing(workspace: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(workspace)
    before = (workspace / "mlflow.db").read_bytes()
    assert prepare_database(link, pytest.fail) == (workspace / "mlartifacts").as_uri()
    assert (workspace / "mlflow.db").read_bytes() == before


def test_prepare_database_old_folder_unreadable_counts_as_moved(workspace: Path) -> None:
    """A name that is too long stands for a folder without permission, which root never meets."""
    execute(workspace / "mlflow.db", f"UPDATE vlae_workspace SET path = '/{'x' * 300}'")
    messages: list[str] = []
    assert prepare_database(workspace, messages.append) == (workspace / "mlartifacts").as_uri()
    assert len(messages) == 1


@pytest.mark.parametrize("num_folders", [1, 2])
def test_prepare_database_without_a_record_infers_the_folder(workspace: Path, num_folders: int) -> None:
    """As a moved database of an earlier version, whose experiments name one old folder, or several."""
    path = workspace / "mlflow.db"
    client = Tracker(TrackingConfig(), workspace).client
    for index in range(num_folders):
        client.create_experiment(f"e{index}", f"file:///old%20{index}/mlartifacts")
    execute(path, "DROP TABLE vlae_workspace")
    messages: list[str] = []
    prepare_database(workspace, messages.append)
    moved = (workspace / "mlartifacts").as_uri()
    expected = [moved] if num_folders == 1 else ["file:///old%200/mlartifacts", "file:///old%201/mlartifacts"]
    query = "SELECT artifact_location FROM experiments WHERE experiment_id != 0 ORDER BY name"
    assert [location for (location,) in execute(path, query)] == expected
    assert ["from /old 0:" in message for message in messages] == [True] * (num_folders == 1)


def test_prepare_database_folder_not_writable_says_so(workspace: Path) -> None:
    """A link, which is refused, stands for a folder without permission."""
    (workspace / "locks" / "mlflow.db").unlink()
    (workspace / "locks" / "mlflow.db").symlink_to(workspace / "other")
    with pytest.raises(UserError, match=r"mlflow\.db: cannot prepare"):
        prepare_database(workspace, ignore)


def test_copy_of_a_database_may_take_long(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", -1.0)
    database._copy(workspace / "mlflow.db", tmp_path / "copy.db")
    assert execute(tmp_path / "copy.db", REVISION) == execute(workspace / "mlflow.db", REVISION)


def test_update_artifact_locations_no_database_writes_nothing(tmp_path: Path) -> None:
    update_artifact_locations(tmp_path, pytest.fail)
    assert names(tmp_path) == set()
