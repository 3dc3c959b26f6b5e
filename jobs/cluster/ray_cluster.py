"""Start a Ray cluster on this machine, or join one, with the settings that the jobs need."""

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
from jobs.errors import UserError

# Read by Ray when it starts. The controller's default poll of two seconds is the smallest time that a
# training can take; the usage report and the watcher for announced preemptions cost a second each.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_OBJECT_STORE_BYTES = 256 * 2**20  # plans and pictures pass through it, never the data


@dataclass(frozen=True)
class Resources:
    """What the cluster has."""

    num_cpus: int  # in all
    num_gpus: int  # in all
    node_cpus: int  # of its largest node: no task and no worker can have more


@contextmanager
def cluster(config: RayConfig, *, dashboard: bool = False) -> Iterator[Resources]:
    """A running Ray cluster for the time of a `with` block.

    Args:
        config: which.
        dashboard: whether one that is started here has Ray's dashboard.

    Raises:
        UserError: no cluster answers at `config.address`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local = config.address == "local"
    if local and not any(name in os.environ for name in _TOKENS) and os.environ.get("RAY_AUTH_MODE") != "disabled":
        # Ray would write a token into the home folder, and ask for it for ever after.
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
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own there
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"ray.address={config.address}: no cluster could be had ({reason})") from error
    try:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        largest = max(int(node["Resources"].get("CPU", 0)) for node in alive)
        yield Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), largest)
    finally:
        ray.shutdown()


def task_result(task: Any) -> Any:
    """Wait for a Ray task.

    Raises:
        UserError, OSError: as the task raised it, without Ray's wrapping.
    """
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from error
        raise
