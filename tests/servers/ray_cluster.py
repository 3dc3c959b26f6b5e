"""A Ray cluster of several nodes on this machine, each with its processes and, where allowed, its own network."""

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
# Because Ray declares a node lost after five health checks of 10 s by default.
_FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Namespaces:
    """A bridge with a network namespace per node, so that a node can lose its network.

    Where namespaces are not allowed (`ip` needs root), all nodes share the loopback interface.
    """

    def __init__(self, count: int) -> None:
        self._id = f"vl{os.getpid() % 100_000}x{random.SystemRandom().randrange(1000)}"
        self._net = f"10.{random.SystemRandom().randrange(130, 250)}.{random.SystemRandom().randrange(250)}"
        self.names = [f"{self._id}n{index}" for index in range(count)]
        self.available = shutil.which("ip") is not None and self._make()
        self.interface = "eth0" if self.available else "lo"

    def _make(self) -> bool:
        bridge = self._id
        steps = [f"link add {bridge} type bridge", f"addr add {self._net}.254/24 dev {bridge}", f"link set {bridge} up"]
        for index, name in enumerate(self.names):
            steps += [
                f"netns add {name}",
                f"link add {name} type veth peer name eth0 netns {name}",
                f"link set {name} master {bridge} up",
                f"-n {name} addr add {self.address(index)}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            ]
        if all(_ip(step) for step in steps):
            return True
        self.remove()
        return False

    def address(self, index: int) -> str:
        return f"{self._net}.{index + 1}" if getattr(self, "available", True) else "127.0.0.1"

    def inside(self, index: int, command: list[str]) -> list[str]:
        """Return the command that runs another one in the namespace of a node."""
        return ["ip", "netns", "exec", self.names[index], *command] if self.available else command

    def cut(self, index: int) -> None:
        """Take a node's network down, so that its connections are not closed properly."""
        if self.available:
            _ip(f"link set {self.names[index]} down")

    def remove(self) -> None:
        for name in self.names:
            _ip(f"link del {name}")
            _ip(f"netns del {name}")
        _ip(f"link del {self._id}")


def _ip(arguments: str) -> bool:
    return subprocess.run(["ip", *arguments.split()], capture_output=True, check=False).returncode == 0


class RayCluster:
    """A cluster of nodes with one CPU each; `node-0` is the head.

    Args:
        count: Number of nodes.
        token: Token that clients must send; empty for none.
    """

    def __init__(self, count: int = 3, token: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, because a socket's path is limited
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
            assert wait_for(lambda: self._nodes() >= 1, _START_SECONDS), self._log_tail(0)
            for index in range(1, self._count):
                self._start(index, [f"--address={gcs}"])
            assert wait_for(lambda: self._nodes() == self._count, _START_SECONDS), self._log_tail(self._count - 1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for index in range(len(self._processes)):
            self._end(index)
        self._network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return the environment of the cluster's clients, with its token if it has one."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mode = {"RAY_AUTH_TOKEN": self._token} if self._token else {"RAY_AUTH_MODE": "disabled"}
        return {**env, **mode, "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "*", "no_proxy": "*"}

    def _start(self, index: int, options: list[str]) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *options]
        command += [f"--node-name=node-{index}", f"--node-ip-address={self._network.address(index)}"]
        command += ["--object-store-memory=80000000", f"--temp-dir={self.folder}/{index}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        env = {
            **self.environment(),
            **_FAST_HEALTH_CHECKS,
            "GLOO_SOCKET_IFNAME": self._network.interface,
            "OMP_NUM_THREADS": "1",
        }
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        if self._token:
            env["RAY_AUTH_MODE"] = "token"
        with (self.folder / f"{index}.log").open("wb") as log:
            process = subprocess.Popen(
                self._network.inside(index, command), stdout=log, stderr=log, env=env, start_new_session=True
            )
        self._processes.append(process)

    def _log_tail(self, index: int) -> str:
        return (self.folder / f"{index}.log").read_text()[-3000:]

    def _nodes(self) -> int:
        try:
            return sum(node["state"] == "ALIVE" for node in self._query("nodes"))
        except (OSError, ValueError):  # the dashboard does not answer yet
            return 0

    def _query(self, resource: str) -> list[dict[str, Any]]:
        """Return what the dashboard lists of nodes, actors or tasks."""
        query = f"{self.address}/api/v0/{resource}?limit=1000"
        request = urllib.request.Request(query, headers={"Authorization": f"Bearer {self._token}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return rows

    def _node_names(self, resource: str, **fields: str) -> list[str]:
        names = {node["node_id"]: node["node_name"] for node in self._query("nodes")}
        return sorted(names[row["node_id"]] for row in self._query(resource) if fields.items() <= row.items())

    def nodes_of_actors(self, name: str) -> list[str]:
        """Return the nodes of the living actors of a class."""
        return self._node_names("actors", class_name=name, state="ALIVE")

    def nodes_of_tasks(self, name: str) -> list[str]:
        """Return the nodes of the finished tasks of a function."""
        return self._node_names("tasks", name=name, state="FINISHED")

    def kill(self, node: str) -> None:
        """Kill a node as a power cut does: its network goes down first, so no connection is closed properly."""
        index = int(node.removeprefix("node-"))
        self._network.cut(index)
        self._end(index)

    def _end(self, index: int) -> None:
        process = self._processes[index]
        if process.poll() is None:
            for pid in descendants(process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()

    def files_with(self, text: str) -> list[Path]:
        """Return the files of all nodes, logs and others, that contain a text."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path for path in files if text.encode() in path.read_bytes())
