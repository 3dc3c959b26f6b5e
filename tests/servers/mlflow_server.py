"""A real MLflow server for the tests, on a free port, in a process group and a folder of its own."""

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

from servers.processes import free_port, running_processes, wait_for

BOOT_SECONDS = 120.0  # because it creates its tables first
STOP_SECONDS = 10.0
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # because it otherwise starts fifteen processes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


class MlflowServer:
    """One MLflow server. All its data are in the database and at the destination of the artifacts.

    Args:
        backend_uri: Address of the database for SQLAlchemy.
        artifacts_destination: URL of a folder or of a prefix in a bucket, which clients reach through the server only.
        env: Environment of the server besides PATH, such as the credentials of the bucket.

    Attributes:
        artifacts_destination: See above.
        port: Port, which a restart keeps.
        process: The running `mlflow server`, replaced by `restart`. A child of it answers requests.
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
        """Tracking URI for clients."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Send SIGKILL to the whole process group, as a power cut does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server if it runs, and start it again on the same port."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the process group and remove its folder. A second call has no effect.

        Raises:
            RuntimeError: The server had crashed; the message has the end of its log.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        self._end(signal.SIGTERM)
        tail = self._log_tail()
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
            answers = wait_for(lambda: self.process.poll() is not None or self._answers(), BOOT_SECONDS)
            if not answers or self.process.poll() is not None:
                status = self.process.poll()
                raise RuntimeError(f"mlflow server did not start (exit status {status}):\n{self._log_tail()}")
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

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _end(self, first_signal: signal.Signals) -> None:
        """Signal the process group until it is empty, which frees the port."""
        for signum in (first_signal, signal.SIGKILL):
            if self._members():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signum)
            if wait_for(lambda: self.process.poll() is not None and not self._members(), STOP_SECONDS):
                return

    def _members(self) -> list[int]:
        return [process.pid for process in running_processes() if process.group == self.process.pid]
