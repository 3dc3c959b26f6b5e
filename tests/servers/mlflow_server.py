"""A real MLflow server for the tests, in a process group and a folder of its own, on a free port."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from servers.processes import free_port, running, wait_for

BOOT_S = 120.0  # tables are made first, which takes long beside other work
STOP_S = 10.0
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else it is fifteen processes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


class MlflowServer:
    """One server. It keeps nothing itself: all is in its database and at the destination of its artifacts.

    Args:
        backend_uri: of the database, for SQLAlchemy.
        artifacts_destination: URL of a folder or a place in a bucket. Clients get at it through the server alone.
        env: what else the server finds in its environment, such as the credentials of the bucket. Of the
            caller's environment it gets nothing else than PATH.

    Attributes:
        artifacts_destination: as it was given.
        port: the same for the server's whole life.
        process: the running `mlflow server`, replaced by `restart`. What answers is a child of it.
    """

    def __init__(self, backend_uri: str, artifacts_destination: str, env: Mapping[str, str]) -> None:
        self.artifacts_destination, self.port = artifacts_destination, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
        self.log = self.folder / "mlflow.log"
        home = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        self._env = {**home, **SETTINGS, **env}
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", backend_uri, "--artifacts-destination", artifacts_destination),
        ]
        try:
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
        """What a client takes for its tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL of the whole group, as by a power cut."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port; kills first what still runs."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the group and remove its folder. A second call does nothing.

        Raises:
            RuntimeError: it had crashed before; the end of its log is in the message.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        self._end(signal.SIGTERM)
        tail = self._end_of_log()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status not in (None, -signal.SIGKILL):
            raise RuntimeError(f"mlflow server ended by itself (exit status {status}):\n{tail}")

    def _boot(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            answers = wait_for(lambda: self.process.poll() is not None or self._answers(), BOOT_S)
            if not answers or self.process.poll() is not None:
                status = self.process.poll()
                raise RuntimeError(f"mlflow server did not start (exit status {status}):\n{self._end_of_log()}")
        except BaseException:
            self.kill()
            raise
        return self.process

    def _answers(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _end(self, how: signal.Signals) -> None:
        """Signal the group until nobody is left in it, which frees the port. Only a session of ours has this number."""
        for signum in (how, signal.SIGKILL):
            if self._members():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signum)
            if wait_for(lambda: self.process.poll() is not None and not self._members(), STOP_S):
                return

    def _members(self) -> list[int]:
        return [process.pid for process in running() if process.group == self.process.pid]
