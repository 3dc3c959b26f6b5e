"""A real PostgreSQL for the tests: Debian's, on a free port, in a folder of its own."""

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
from servers.processes import free_port, missing, running, wait_for

USER = "tests"
SYSTEM_USER = "postgres"  # Debian's package makes it
BOOT_S = 30.0
STOP_S = 10.0
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",  # a killed server loses nothing that the kernel has; only a machine that falls would
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "shared_buffers=32MB",
    "max_connections=50",
    "dynamic_shared_memory_type=mmap",  # files in the folder: a killed server leaves none in /dev/shm
)


def postgres_programs() -> Path:
    """The folder of the newest ones. Without any a test is skipped, but in CI it fails."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda program: float(program.parts[-3]), default=None)
    if newest is None:
        missing("no PostgreSQL in /usr/lib/postgresql (apt-get install postgresql)")
    return newest.init_from


class PostgresServer:
    """One server. What was committed outlives `kill` and `restart`; `stop` removes it with all else.

    Attributes:
        port: the same for the server's whole life.
        process: the running postmaster, replaced by `restart`. Its children are the server too.
    """

    def __init__(self) -> None:
        programs = postgres_programs()
        self.port, self._password = free_port(), secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.log = self.folder / "postgres.log"
        self._data = self.folder / "data"
        self._how: dict[str, Any] = {"cwd": self.folder, "env": {"LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:  # as which PostgreSQL refuses to run
            self._how |= {"user": SYSTEM_USER, "group": SYSTEM_USER, "extra_groups": []}
        options = [word for setting in SETTINGS for word in ("-c", setting)]
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
        """For SQLAlchemy: the database that is always there."""
        return self._uri("postgres")

    def create_database(self, name: str) -> str:
        """The URI of a new, empty database. Of two with one name, the second raises psycopg2's DuplicateDatabase."""
        with contextlib.closing(self._connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._uri(name)

    def kill(self) -> None:
        """SIGKILL of the postmaster and all its children, as by a power cut."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGSTOP)  # it has no more children from here on, and reaps none
        children = {process.pid for process in running() if process.parent == self.process.pid}
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        # While one is left, PostgreSQL refuses to start again.
        wait_for(lambda: not children & {process.pid for process in running()}, STOP_S)

    def restart(self) -> None:
        """Start again over the same folder and port; kills first what still runs."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the server, whoever is connected, and remove its folder. A second call does nothing.

        Raises:
            RuntimeError: it had crashed before; the end of its log is in the message.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        if status is None:
            self.process.send_signal(signal.SIGINT)  # on SIGTERM it would wait for its clients
            if not wait_for(lambda: self.process.poll() is not None, STOP_S):
                self.kill()
        self._free_shared_memory()
        tail = self._end_of_log()
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
            done = subprocess.run(command, check=False, stdout=log, stderr=log, **self._how)
        if done.returncode:
            raise RuntimeError(f"initdb failed (exit status {done.returncode}):\n{self._end_of_log()}")

    def _boot(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:  # a session of its own: an interrupt at the terminal is not for it
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True, **self._how)
        try:
            wait_for(lambda: self.process.poll() is not None or self._answers(), BOOT_S)
            if not self._answers():
                status = self.process.poll()
                raise RuntimeError(f"PostgreSQL did not start (exit status {status}):\n{self._end_of_log()}")
        except BaseException:
            self.kill()
            raise
        return self.process

    def _answers(self) -> bool:
        try:
            self._connect().close()  # with a random password: only our own server can say yes
        except psycopg2.OperationalError:
            return False
        return True

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _free_shared_memory(self) -> None:
        """The System V segment of a killed server would stay until the machine ends. One that has stopped has none."""
        note = self._data / "postmaster.pid"
        if note.exists() and len(lines := note.read_text().splitlines()) > 6 and lines[6].split():
            subprocess.run(["ipcrm", "--shmem-id", lines[6].split()[1]], check=False, capture_output=True)
