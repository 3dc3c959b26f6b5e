"""A Ray cluster of several nodes on this machine: each of its own processes, and where allowed of its own network."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from servers.processes import descendants, free_port, wait_for

HEAD = "node-0"
_START_SECONDS = 60.0
# Ray looks after a node every 3 s and gives it up after five looks of 10 s.
_QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Namespaces:
    """A bridge with a network namespace per node behind it, so that a node can lose its network, too.

    Where that is not allowed (`ip` needs root), all nodes share the loopback.
    """

    def __init__(self, count: int) -> None:
        self._id = f"vl{os.getpid() % 100_000}x{random.SystemRandom().randrange(1000)}"
        self._net = f"10.{random.SystemRandom().randrange(130, 250)}.{random.SystemRandom().randrange(250)}"
        self.names = [f"{self._id}n{number}" for number in range(count)]
        self.there = shutil.which("ip") is not None and self._make()
        self.interface = "eth0" if self.there else "lo"

    def _make(self) -> bool:
        bridge = self._id
        steps = [f"link add {bridge} type bridge", f"addr add {self._net}.254/24 dev {bridge}", f"link set {bridge} up"]
        for number, name in enumerate(self.names):
            steps += [
                f"netns add {name}",
                f"link add {name} type veth peer name eth0 netns {name}",
                f"link set {name} master {bridge} up",
                f"-n {name} addr add {self.address(number)}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            ]
        if all(_ip(step) for step in steps):
            return True
        self.remove()
        return False

    def address(self, number: int) -> str:
        return f"{self._net}.{number + 1}" if getattr(self, "there", True) else "127.0.0.1"

    def inside(self, number: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[number], *command] if self.there else command

    def cut(self, number: int) -> None:
        """No packet leaves this node any more: the others are not told that its connections are closed."""
        if self.there:
            _ip(f"link set {self.names[number]} down")

    def remove(self) -> None:
        for name in self.names:
            _ip(f"link del {name}")
            _ip(f"netns del {name}")
        _ip(f"link del {self._id}")


def _ip(words: str) -> bool:
    return subprocess.run(["ip", *words.split()], capture_output=True, check=False).returncode == 0


class RayCluster:
    """Nodes of one CPU each: `node-0`, the head, and others."""

    def __init__(self, count: int = 3, token: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths must be short
        self._network = Namespaces(count)
        self._count, self._token = count, token
        self._ports = {name: free_port() for name in ("gcs", "dashboard")}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = f"http://{self._network.address(0)}:{self._ports['dashboard']}"

    def __enter__(self) -> "RayCluster":
        try:
            gcs = f"{self._network.address(0)}:{self._ports['gcs']}"
            dashboard = [f"--dashboard-port={self._ports['dashboard']}", "--dashboard-host=0.0.0.0"]
            self._start(0, ["--head", f"--port={self._ports['gcs']}", *dashboard])
            assert wait_for(lambda: self._nodes() >= 1, _START_SECONDS), self._said(0)
            for number in range(1, self._count):
                self._start(number, [f"--address={gcs}"])
            assert wait_for(lambda: self._nodes() == self._count, _START_SECONDS), self._said(self._count - 1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in range(len(self._processes)):
            self._end(number)
        self._network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Of whoever talks to the cluster, with its token if it has one."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mode = {"RAY_AUTH_TOKEN": self._token} if self._token else {"RAY_AUTH_MODE": "disabled"}
        return {**env, **mode, "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "*", "no_proxy": "*"}

    def _start(self, number: int, words: list[str]) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *words]
        command += [f"--node-name=node-{number}", f"--node-ip-address={self._network.address(number)}"]
        command += ["--object-store-memory=80000000", f"--temp-dir={self.folder}/{number}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        env = {**self.environment(), **_QUICK, "GLOO_SOCKET_IFNAME": self._network.interface, "OMP_NUM_THREADS": "1"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        if self._token:
            env["RAY_AUTH_MODE"] = "token"
        with (self.folder / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                self._network.inside(number, command), stdout=log, stderr=log, env=env, start_new_session=True
            )
        self._processes.append(process)

    def _said(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text()[-3000:]

    def _nodes(self) -> int:
        try:
            return sum(node["state"] == "ALIVE" for node in self._ask("nodes"))
        except (OSError, ValueError):  # it is not up yet
            return 0

    def _ask(self, what: str) -> list[dict[str, Any]]:
        """What the dashboard knows of nodes, actors or tasks."""
        query = f"{self.address}/api/v0/{what}?limit=1000"
        request = urllib.request.Request(query, headers={"Authorization": f"Bearer {self._token}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return rows

    def _where(self, what: str, **wanted: str) -> list[str]:
        names = {node["node_id"]: node["node_name"] for node in self._ask("nodes")}
        return sorted(names[row["node_id"]] for row in self._ask(what) if wanted.items() <= row.items())

    def where_actors_live(self, name: str) -> list[str]:
        """The nodes of the living actors of a class."""
        return self._where("actors", class_name=name, state="ALIVE")

    def where_tasks_ran(self, name: str) -> list[str]:
        """The nodes of the finished tasks of a function."""
        return self._where("tasks", name=name, state="FINISHED")

    def kill(self, node: str) -> None:
        """As if it lost its power: its network is cut first, so that nobody is told."""
        number = int(node.removeprefix("node-"))
        self._network.cut(number)
        self._end(number)

    def _end(self, number: int) -> None:
        process = self._processes[number]
        if process.poll() is None:
            for pid in descendants(process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()

    def files_with(self, text: str) -> list[Path]:
        """The files of all nodes, logs and others, that contain a text."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path for path in files if text.encode() in path.read_bytes())
