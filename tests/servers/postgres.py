"""A real PostgreSQL server for the tests: Debian's, on a free port, in a folder of its own."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2
from psycopg2 import sql
from servers.processes import free_port, running_processes, skip_or_fail, wait_for

USER = "tests"
SYSTEM_USER = "postgres"  # created by Debian's package
BOOT_SECONDS = 30.0
STOP_SECONDS = 10.0
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",  # safe here, because a killed server loses nothing that the kernel has
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "shared_buffers=32MB",
    "max_connections=50",
    "dynamic_shared_memory_type=mmap",  # because a killed server would leave files in /dev/shm
)


def postgres_programs() -> Path:
    """Return the folder of the newest programs; without any the test is skipped, or fails in CI."""
    programs = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(programs, key=lambda program: float(program.parts[-3]), default=None)
    if newest is None:
        skip_or_fail("/usr/lib/postgresql: no PostgreSQL found (apt-get install postgresql)")
    return newest.parent


class PostgresServer:
    """One PostgreSQL server. Committed data outlive `kill` and `restart`; `stop` removes them.

    Attributes:
        port: Port, which a restart keeps.
        process: The running postmaster, replaced by `restart`. Its children belong to the server too.
    """

    def __init__(self) -> None:
        programs = postgres_programs()
        self.port, self._password = free_port(), secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.log = self.folder / "postgres.log"
        self._data = self.folder / "data"
        self._popen_options: dict[str, Any] = {"cwd": self.folder, "env": {"LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:  # because PostgreSQL refuses to run as root
            self._popen_options |= {"user": SYSTEM_USER, "group": SYSTEM_USER, "extra_groups": []}
        options = [argument for setting in SETTINGS for argument in ("-c", setting)]
        self._command = [programs / "postgres", "-D", self._data, "-p", str(self.port), *options]
        try:
            self._make_data(programs / "initdb")
            self.process = self._boot()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """Address for SQLAlchemy of the database that always exists."""
        return self._uri("postgres")

    def create_database(self, name: str) -> str:
        """Create a database and return its address; a name that is taken raises psycopg2's DuplicateDatabase."""
        with contextlib.closing(self._connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._uri(name)

    def kill(self) -> None:
        """Send SIGKILL to the postmaster and all its children, as a power cut does."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGSTOP)  # so that it neither starts nor reaps children
        children = {process.pid for process in running_processes() if process.parent == self.process.pid}
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        # Because PostgreSQL refuses to start while a child is left.
        wait_for(lambda: not children & {process.pid for process in running_processes()}, STOP_SECONDS)

    def restart(self) -> None:
        """Kill the server if it runs, and start it again with the same folder and port."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the server and its connections, and remove its folder. A second call has no effect.

        Raises:
            RuntimeError: The server had crashed; the message has the end of its log.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        if status is None:
            self.process.send_signal(signal.SIGINT)  # because on SIGTERM it waits for its clients
            if not wait_for(lambda: self.process.poll() is not None, STOP_SECONDS):
                self.kill()
        self._free_shared_memory()
        tail = self._log_tail()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status not in (None, -signal.SIGKILL):
            raise RuntimeError(f"PostgreSQL ended by itself (exit status {status}):\n{tail}")

    def _uri(self, database: str) -> str:
        return f"postgresql+psycopg2://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def _connect(self) -> Any:
        return psycopg2.connect(self._uri("postgres").replace("+psycopg2", ""), connect_timeout=5)

    def _make_data(self, initdb: Path) -> None:
        password = self.folder / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            for path in (self.folder, password):
                shutil.chown(path, SYSTEM_USER, SYSTEM_USER)
        options = ("--no-sync", "--locale=C", "--encoding=UTF8", f"--username={USER}", "--auth=scram-sha-256")
        command = [initdb, f"--pgdata={self._data}", f"--pwfile={password}", *options]
        with self.log.open("ab") as log:
            done = subprocess.run(command, check=False, stdout=log, stderr=log, **self._popen_options)
        if done.returncode:
            raise RuntimeError(f"initdb failed (exit status {done.returncode}):\n{self._log_tail()}")

    def _boot(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:  # a session of its own, which Ctrl-C does not reach
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, **self._popen_options
            )
        try:
            wait_for(lambda: self.process.poll() is not None or self._answers(), BOOT_SECONDS)
            if not self._answers():
                status = self.process.poll()
                raise RuntimeError(f"PostgreSQL did not start (exit status {status}):\n{self._log_tail()}")
        except BaseException:
            self.kill()
            raise
        return self.process

    def _answers(self) -> bool:
        try:
            self._connect().close()  # only this server accepts the random password
        except psycopg2.OperationalError:
            return False
        return True

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _free_shared_memory(self) -> None:
        """Remove the System V segment of a killed server, which would stay until the machine restarts."""
        note = self._data / "postmaster.pid"
        if note.exists() and len(lines := note.read_text().splitlines()) > 6 and lines[6].split():
            subprocess.run(["ipcrm", "--shmem-id", lines[6].split()[1]], check=False, capture_output=True)
