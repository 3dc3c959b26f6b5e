"""Start a Ray cluster on this machine or join one, with the settings that the jobs need."""

import logging
import os
import resource
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray.exceptions import RayTaskError

from jobs.config import RayConfig
from jobs.errors import UserError, first_line

# Ray reads these when it starts. The controller's default poll of two seconds would be the shortest time of a training,
# and the usage report and the watcher for announced preemptions cost a second each.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_OBJECT_STORE_BYTES = 256 * 2**20  # small, because plans and pictures pass through it but never the data
_TEMP_BYTES = 64 * 2**20  # sockets and logs of a command
_OPEN_FILES = 1024  # of each process; Ray crashes in the middle of a training with 64
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Resources:
    """Resources of all nodes; no task and no worker can exceed `node_cpus`, the CPUs of the largest node."""

    num_cpus: int
    num_gpus: int
    node_cpus: int


@contextmanager
def cluster(config: RayConfig, *, dashboard: bool = False) -> Iterator[Resources]:
    """Connect to a Ray cluster for the duration of a `with` block.

    Args:
        config: Address of the cluster, or `local` to start one.
        dashboard: Whether a cluster started here runs Ray's dashboard.

    Yields:
        Resources of the cluster.

    Raises:
        UserError: No cluster answers at `ray.address`, or this machine cannot start one.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local = config.address == "local"
    if local:
        _check_machine()
        if not any(name in os.environ for name in _TOKENS) and os.environ.get("RAY_AUTH_MODE") != "disabled":
            # Without a token, Ray writes one into the home folder and asks for it from then on.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Because Ray would connect the new cluster to the state of another one.
        os.environ.pop("RAY_REDIS_ADDRESS", None)
        # Ray's processes then listen on the loopback only, as by default on macOS. Children read the variable.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=config.address,
            num_cpus=(config.num_cpus or None) if local else None,
            include_dashboard=dashboard if local else None,
            object_store_memory=_OBJECT_STORE_BYTES if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        raise UserError(_start_failure(config.address, error)) from error
    signal.signal(signal.SIGTERM, on_terminate)  # because Ray installs its own handler
    try:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        largest = max(int(node["Resources"].get("CPU", 0)) for node in alive)
        yield Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), largest)
    finally:
        ray.shutdown()


def is_local() -> bool:
    """Return whether the cluster of this process was started by `ray.address=local`, so that it has one machine."""
    return bool(ray.util.get_node_ip_address() == _LOOPBACK)  # type: ignore[no-untyped-call]


def _check_machine() -> None:
    """Raise UserError where Ray would crash or wait without naming the cause: few open files, a full disk."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the soft limit to the hard one
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        raise UserError(
            f"ulimit -n: {limit} open files are allowed, and Ray needs {_OPEN_FILES}. Raise the hard limit."
        )
    temp = Path(get_default_ray_temp_dir())  # type: ignore[no-untyped-call]
    memory = Path("/dev/shm")  # noqa: S108  (the folder of Ray's object store)
    required = _TEMP_BYTES
    if not memory.exists() or shutil.disk_usage(memory).free < _OBJECT_STORE_BYTES:
        required += _OBJECT_STORE_BYTES  # Ray then keeps the objects among its temporary files
    free = shutil.disk_usage(next(folder for folder in (temp, *temp.parents) if folder.exists())).free
    if free < required:
        raise UserError(
            f"{temp}: {free / 2**20:.0f} MB are free, and Ray needs {required / 2**20:.0f} MB. Free space, or set "
            "RAY_TMPDIR to a folder on another disk."
        )


def _start_failure(address: str, error: Exception) -> str:
    """Return the message of a failed `ray.init`."""
    temp, reason = get_default_ray_temp_dir(), first_line(error)  # type: ignore[no-untyped-call]
    if address != "local":
        fix = "Check the address, or set ray.address=local."
        return f"ray.address={address}: cannot connect to a cluster ({reason}). {fix}"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return f"{temp}: unusable for Ray ({reason}). Set RAY_TMPDIR to a short path, such as /tmp."
    return f"ray.address=local: Ray did not start ({reason}). See its logs in {temp}/session_latest/logs."


def task_result(task: Any) -> Any:
    """Wait for a Ray task and return its result; raise its UserError or OSError unwrapped, others as RayTaskError."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from error
        raise
