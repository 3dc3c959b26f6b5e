"""The training worker of Ray Train: what runs on each worker, and how it is asked to stop."""

import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from jobs.device import tune_malloc
from jobs.errors import TrainingError, UnavailableError, UserError, first_line
from jobs.events import WorkerFailed, WorkersStarted
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker

_POLL_SECONDS = 0.5


@dataclass
class StoppableTorch(TorchConfig):
    """The process group of the workers. A worker that receives SIGTERM requests all of them to stop."""

    event_queue: Any = None

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that installs the signal handler."""
        return _StoppableBackend


class _StoppableBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(_stop_on_sigterm, backend_config.event_queue)


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
