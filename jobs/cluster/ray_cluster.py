"""Start a Ray cluster on this machine or join one, with the settings that the jobs need."""

import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

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
        UserError: No cluster answers at `ray.address`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local = config.address == "local"
    if local and not any(name in os.environ for name in _TOKENS) and os.environ.get("RAY_AUTH_MODE") != "disabled":
        # Without a token, Ray writes one into the home folder and asks for it from then on.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
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
        signal.signal(signal.SIGTERM, on_terminate)  # because Ray installs its own handler
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            f"ray.address={config.address}: cannot connect to a cluster ({first_line(error)}). Check the address, or "
            "set ray.address=local."
        ) from error
    try:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        largest = max(int(node["Resources"].get("CPU", 0)) for node in alive)
        yield Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), largest)
    finally:
        ray.shutdown()


def task_result(task: Any) -> Any:
    """Wait for a Ray task and return its result; raise its UserError or OSError unwrapped, others as RayTaskError."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from error
        raise
