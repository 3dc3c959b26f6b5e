"""The worker's side of the train job: what Ray Train runs on each worker, and how it is asked to stop."""

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
from jobs.errors import TrainingError, UnavailableError, UserError
from jobs.events import WorkerFailed, WorkersStarted
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker

_ASK_EVERY = 0.5  # seconds


@dataclass
class StoppableTorch(TorchConfig):
    """The process group of the workers, which ask the board to stop training when they get SIGTERM."""

    board: Any = None

    @property
    def backend_cls(self) -> type[Backend]:
        return _StoppableBackend


class _StoppableBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(_stop_on_sigterm, backend_config.board)


def _stop_on_sigterm(board: Any) -> None:
    """A node that is taken away says so by SIGTERM: time for a checkpoint.

    Runs in the main thread of a worker, where alone handlers can be set; training runs in another. The handler in
    turn runs at Ray's next look at the worker, some tenths of a second later. From there Ray cannot be called, which
    a thread does.
    """
    told = threading.Event()

    def tell() -> None:
        told.wait()
        board.stop.remote()

    threading.Thread(target=tell, name="sigterm", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: told.set())


class StopSignal:
    """Asks the board from time to time whether to stop, and never waits for the answer."""

    def __init__(self, board: Any) -> None:
        self._board, self._reply, self._asked = board, None, 0.0

    def __call__(self) -> bool:
        if self._reply is None:
            if time.monotonic() - self._asked < _ASK_EVERY:
                return False
            self._reply, self._asked = self._board.stopping.remote(), time.monotonic()
        ready, _ = ray.wait([self._reply], timeout=0)
        if not ready:
            return False
        answer, self._reply = bool(ray.get(ready[0])), None
        return answer


def train_worker(config: dict[str, Any]) -> int:
    """Train, and return the last step.

    Args:
        config: `job`, `threads` of torch, and the `board` to post to.
    """
    job: TrainJob = config["job"]
    board = config["board"]
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
        wrap=_distributed if world_size > 1 else lambda module: module,
        stop=StopSignal(board),
    )
    if worker.rank == 0:
        board.post.remote(WorkersStarted())
    try:
        return train_model(job, worker, board.post.remote)
    except StoppedError:
        raise
    except UserError as error:
        final, own = not isinstance(error, UnavailableError), isinstance(error, TrainingError)
        ray.get(board.post.remote(WorkerFailed(str(error), retryable=not final, trial_specific=own)))
        raise
    except Exception as error:
        lines = str(error).strip().split("\n")
        ray.get(board.post.remote(WorkerFailed(f"{type(error).__name__}: {lines[0]}", retryable=True)))
        raise


def _distributed(module: torch.nn.Module) -> torch.nn.Module:
    """With DistributedDataParallel; running statistics are averaged by the step itself."""
    settings = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    wrapped: torch.nn.Module = ray.train.torch.prepare_model(
        module, move_to_device=False, parallel_strategy_kwargs=settings
    )
    return wrapped
