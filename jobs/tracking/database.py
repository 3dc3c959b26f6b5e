"""MLflow's SQLite database of a workspace: created and upgraded atomically, and usable after the folder was moved.

MLflow's migrations on SQLite are neither atomic nor exclusive: a kill or a second command leaves a part of the tables.
They therefore run on a file of another name, under a lock of the workspace. This module imports MLflow only for them.
"""

import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.cli import defer_signals
from jobs.errors import UserError, first_line, os_error_reason
from jobs.files import UUID_HEX, file_lock

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_PARTIAL = re.compile(rf"\.{re.escape(DATABASE)}\.{UUID_HEX}(-journal|-wal|-shm)?")  # as `_partial` names them
_WORKSPACE = "vlae_workspace"  # table of this module: the folder in the artifact locations below
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
_COPY = "_alembic_tmp_"  # prefix of the table into which alembic copies the rows of another
_SEEDED = {"alembic_version", "experiments", "workspaces", _WORKSPACE}  # tables with rows in a new database
_BUSY_SECONDS = 20.0  # how long to wait for a program that writes to the database


def prepare_database(workspace: Path, notify: Callable[[str], None]) -> str:
    """Create the database if it is missing, upgrade it if its schema is older, and update its artifact locations.

    Args:
        workspace: Folder of the database.
        notify: Called with a line for the user about a wait, an upgrade or changed locations.

    Returns:
        Address of the folder of the artifacts.

    Raises:
        UserError: The database cannot be used.
    """
    path = workspace / DATABASE
    with _errors(path), _lock(workspace, notify):
        for leftover in workspace.glob(f".{DATABASE}.*"):
            if _PARTIAL.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)
        _migrate(path, notify)
        return _update_locations(path, notify)


def update_artifact_locations(workspace: Path, notify: Callable[[str], None]) -> None:
    """Rewrite the artifact locations in the database, if there is one, after the workspace was moved or copied.

    Args:
        workspace: Folder of the database.
        notify: Called with a line for the user if locations change.

    Raises:
        UserError: The database cannot be used.
    """
    path = workspace / DATABASE
    if path.exists():
        with _errors(path), _lock(workspace, notify):
            if _revision(path):
                _update_locations(path, notify)


@contextmanager
def _lock(workspace: Path, notify: Callable[[str], None]) -> Iterator[None]:
    def notify_wait() -> None:
        notify(f"waiting for another command that prepares {workspace / DATABASE}")

    path = workspace / "locks" / DATABASE
    path.parent.mkdir(exist_ok=True)
    with file_lock(path, on_wait=notify_wait):
        yield


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path}: cannot read or write ({first_line(error)}). Check permissions, free space, and other programs "
            "that use the database.",
            retry=True,
        ) from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}). Restore a copy of the file, or move it away to start with "
            "an empty database."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot prepare ({os_error_reason(error)}). Check the permissions of its folder, which must be "
            "writable."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _revision(path: Path) -> str:
    """Return the revision of MLflow's schema, empty if the database has none."""
    with closing(_connect(path)) as connection:
        if "alembic_version" not in _tables(connection):
            return ""
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else ""


def _has_content(path: Path) -> bool:
    """Return whether a database has more than what MLflow writes into a new one."""
    with closing(_connect(path)) as connection:
        tables = _tables(connection)
        queries = [f'SELECT 1 FROM "{name}" LIMIT 1' for name in tables - _SEEDED]  # noqa: S608  (names of tables)
        if "experiments" in tables:
            queries.append("SELECT 1 FROM experiments WHERE experiment_id != 0 LIMIT 1")
        return any(connection.execute(query).fetchone() for query in queries)


def _migrate(path: Path, notify: Callable[[str], None]) -> None:
    """Bring the schema to the revision of the installed MLflow."""
    # Imported here, because a command that skips all stages needs no MLflow.
    import mlflow.store.db_migrations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))
    revision = _revision(path) if path.exists() else ""
    if revision in scripts.get_heads():
        return
    if revision and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise UserError(
            f"{path}: written by a newer MLflow than {mlflow.__version__}. Install the newer MLflow, or set "
            "another workspace=."
        )
    if path.exists() and _has_content(path):
        _upgrade(path, revision, notify)
    else:
        _create(path)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yield a path beside the database that is removed afterwards, or by the next command after a kill."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        _remove_journals(partial)


def _remove_journals(path: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def _migration_errors(path: Path, action: str, fix: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # because migrations raise what SQLAlchemy, alembic, MLflow and Python raise
        raise UserError(f"{path}: MLflow cannot {action} the database ({first_line(error)}). {fix}") from error


def _create(path: Path) -> None:
    """Create the database, in place of one without content such as killed migrations leave."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Deferred, because a signal that Python handles in a destructor of SQLAlchemy would be lost.
    with defer_signals(), _partial(path) as partial:
        with _migration_errors(path, "create", "Check the free space and permissions of the folder."):
            store = SqlAlchemyStore(f"sqlite:///{partial}", (path.parent / ARTIFACTS).as_uri())  # type: ignore[no-untyped-call]
            store.engine.dispose()
        if path.exists():
            _copy(partial, path)
        else:
            _remove_journals(path)  # because SQLite would apply the journal of a deleted database to the new one
            partial.rename(path)


def _upgrade(path: Path, revision: str, notify: Callable[[str], None]) -> None:
    """Upgrade a copy and put it in place of the database, which is kept as mlflow.db.REVISION."""
    import sqlalchemy
    from mlflow.store.db.utils import _upgrade_db  # what `mlflow db upgrade` calls

    previous = path.with_name(f"{path.name}.{revision or 'previous'}")
    with _partial(path) as upgraded, _partial(path) as kept, closing(_connect(path)) as connection:
        version = "PRAGMA data_version"  # SQLite changes this number when another connection commits
        before = connection.execute(version).fetchone()
        _copy(path, upgraded)
        _copy(upgraded, kept)
        with closing(_connect(upgraded)) as copy:
            tables = _tables(copy)
            for name in tables:  # of a killed migration, which copies its table once more
                if name.startswith(_COPY) and name.removeprefix(_COPY) in tables:
                    copy.execute(f'DROP TABLE "{name}"')
        with _migration_errors(
            path, "upgrade", "Restore a copy of the database, or move it away to start with an empty one."
        ):
            engine = sqlalchemy.create_engine(f"sqlite:///{upgraded}")
            _upgrade_db(engine)  # type: ignore[no-untyped-call]
            engine.dispose()
        kept.rename(previous)
        if connection.execute(version).fetchone() != before:
            raise UserError(
                f"{path}: another program changed the database during its upgrade. End that program.", retry=True
            )
        _copy(upgraded, path)
    notify(f"upgraded the schema of {path}; the previous database is kept as {previous.name}")


def _copy(source: Path, target: Path) -> None:
    """Copy a database over another in one transaction, also while other programs have the target open.

    Raises:
        UserError: Another program locks one of the databases.
    """
    deadline = time.monotonic() + _BUSY_SECONDS

    def check(status: int, *_: int) -> None:  # because `backup` itself waits without end
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise UserError(f"{target}: locked by another program. End that program.", retry=True)

    with closing(sqlite3.connect(source, timeout=0)) as old, closing(sqlite3.connect(target, timeout=0)) as new:
        old.backup(new, progress=check, sleep=0.1)


def _update_locations(path: Path, notify: Callable[[str], None]) -> str:
    """Return the address of the artifacts, after locations in the recorded folder were rewritten to the present one.

    Locations outside the recorded folder stay as they are.
    """
    workspace = path.parent
    with closing(_connect(path)) as connection:
        if _WORKSPACE not in _tables(connection):
            inferred = _infer_workspace(connection) or workspace
            connection.execute(f"CREATE TABLE {_WORKSPACE} AS SELECT ? AS path", [str(inferred)])
        recorded = Path(connection.execute(f"SELECT path FROM {_WORKSPACE}").fetchone()[0])  # noqa: S608
        old, new = (recorded / ARTIFACTS).as_uri(), (workspace / ARTIFACTS).as_uri()
        if _is_same(recorded, workspace):  # also by a link or another mount
            return old
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _LOCATIONS:
            if connection.execute("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", [table, column]).fetchone():
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608  (constants)
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, old, len(old) + 1, f"{old}/"],
                )
        connection.execute(f"UPDATE {_WORKSPACE} SET path = ?", [str(workspace)])  # noqa: S608
        connection.execute("COMMIT")
    notify(f"the workspace was moved or copied from {recorded}: artifact locations in {path} now name {workspace}")
    return new


def _infer_workspace(connection: sqlite3.Connection) -> Path | None:
    """Return the folder that the experiments name, for a database without a record; None if they name not just one."""
    query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    locations = connection.execute(query, [f"file://%/{ARTIFACTS}"]).fetchall()
    return Path(unquote(urlsplit(locations[0][0]).path)).parent if len(locations) == 1 else None


def _is_same(folder: Path, other: Path) -> bool:
    try:
        return folder.samefile(other)
    except OSError:  # it does not exist, or is in a folder that this user cannot read
        return False
