"""The training worker of Ray Train: what runs on each worker, and how it is asked to stop."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from jobs.cluster.ray_cluster import is_local
from jobs.device import tune_malloc
from jobs.errors import TrainingError, UnavailableError, UserError, first_line
from jobs.events import WorkerFailed, WorkersStarted
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker

_POLL_SECONDS = 0.5


@dataclass
class StoppableTorch(TorchConfig):
    """The process group of the workers. A worker that receives SIGTERM requests all of them to stop.

    Attributes:
        event_queue: Handle of the `EventQueue` actor.
        scratch: Folder for the rendezvous of the workers in a local cluster.
    """

    event_queue: Any = None
    scratch: Path = Path()

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that installs the signal handler."""
        return _StoppableBackend


class _StoppableBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if is_local():
            _start_local_group(worker_group, backend_config)
        else:
            super().on_start(worker_group, backend_config)
        worker_group.execute(_stop_on_sigterm, backend_config.event_queue)


def _start_local_group(worker_group: Any, config: StoppableTorch) -> None:
    """Connect workers of one machine through a file, because torch's TCPStore listens on all addresses."""
    config.scratch.mkdir(parents=True, exist_ok=True)
    on_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
    settings = {
        "backend": config.backend or ("nccl" if on_gpu else "gloo"),
        "rendezvous": config.scratch / f"rendezvous-{time.time_ns()}",
        "world_size": len(worker_group),
        "timeout": timedelta(seconds=config.timeout_s),
    }
    worker_group.execute(_set_torch_distributed_env_vars)
    ranks = range(len(worker_group))
    ray.get([worker_group.execute_single_async(rank, _join_local_group, rank, **settings) for rank in ranks])


def _join_local_group(rank: int, backend: str, rendezvous: Path, world_size: int, timeout: timedelta) -> None:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    store = dist.FileStore(str(rendezvous), world_size)  # type: ignore[attr-defined]  # missing from __all__
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _stop_on_sigterm(event_queue: Any) -> None:
    """Request a stop on SIGTERM, which announces that the node is taken away and leaves time for a checkpoint.

    Runs in a worker's main thread, because Python installs handlers only there; training runs in another. The handler
    runs when Ray next polls the worker, after some tenths of a second. The handler cannot call Ray, so a thread does.
    """
    terminated = threading.Event()

    def request_stop() -> None:
        terminated.wait()
        event_queue.request_stop.remote()

    threading.Thread(target=request_stop, name="sigterm", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())


class StopSignal:
    """Polls the event queue for a request to stop, without ever waiting for the answer."""

    def __init__(self, event_queue: Any) -> None:
        self._event_queue, self._reply, self._polled = event_queue, None, 0.0

    def __call__(self) -> bool:
        if self._reply is None:
            if time.monotonic() - self._polled < _POLL_SECONDS:
                return False
            self._reply, self._polled = self._event_queue.stop_requested.remote(), time.monotonic()
        ready, _ = ray.wait([self._reply], timeout=0)
        if not ready:
            return False
        answer, self._reply = bool(ray.get(ready[0])), None
        return answer


def train_worker(config: dict[str, Any]) -> int:
    """Train on this worker of Ray Train.

    Args:
        config: `job` (TrainJob), `threads` of torch, and the handle `event_queue`.

    Returns:
        The last step.

    Raises:
        StoppedError: Training stopped on request.
        UserError: Training failed, as the `WorkerFailed` event says.
    """
    job: TrainJob = config["job"]
    event_queue = config["event_queue"]
    torch.set_num_threads(config["threads"])
    tune_malloc()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    world_size = context.get_world_size()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=world_size,
        device=device,
        wrap=_distributed if world_size > 1 else Worker.wrap,
        stop=StopSignal(event_queue),
    )
    if worker.rank == 0:
        event_queue.put.remote(WorkersStarted())
    try:
        return train_model(job, worker, event_queue.put.remote)
    except StoppedError:
        raise
    except UserError as error:
        failure = WorkerFailed(
            str(error),
            retryable=isinstance(error, UnavailableError),
            trial_specific=isinstance(error, TrainingError),
            retry=error.retry,
        )
        ray.get(event_queue.put.remote(failure))
        raise
    except Exception as error:
        failure = WorkerFailed(f"{type(error).__name__}: {first_line(error)}", retryable=True)
        ray.get(event_queue.put.remote(failure))
        raise


def _distributed(module: torch.nn.Module) -> torch.nn.Module:
    # DistributedDataParallel need not broadcast buffers, because the step averages running statistics itself.
    settings = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    wrapped: torch.nn.Module = ray.train.torch.prepare_model(
        module, move_to_device=False, parallel_strategy_kwargs=settings
    )
    return wrapped
