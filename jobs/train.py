"""The train job: the loop, run by Ray Train on one worker or many, and watched by the driver."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from jobs.board import Board
from jobs.cluster import Resources
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.loop import TrainJob, Worker, train_model
from jobs.messages import Message

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Placement:
    """What each worker gets."""

    num_cpus: int
    use_gpu: bool


def place(config: TrainConfig, resources: Resources) -> Placement:
    """CPUs and GPU of each worker.

    Raises:
        UserError: the cluster is too small; Ray itself would wait for ever.
    """
    use_gpu = config.device == "cuda" or (config.device == "auto" and resources.num_gpus >= config.num_workers)
    if use_gpu and resources.num_gpus < config.num_workers:
        raise UserError(
            f"train.num_workers={config.num_workers} with train.device=cuda needs as many GPUs, and the cluster has "
            f"{resources.num_gpus}: set train.device=cpu or fewer workers"
        )
    num_cpus = config.cpus_per_worker or max(1, min(resources.num_cpus // config.num_workers, resources.node_cpus))
    if num_cpus > max(1, resources.node_cpus):
        raise UserError(
            f"train.cpus_per_worker={num_cpus} is more than the largest node of the cluster has, {resources.node_cpus}"
        )
    if num_cpus * config.num_workers > resources.num_cpus:
        raise UserError(
            f"train.num_workers={config.num_workers} with {num_cpus} CPU each need {num_cpus * config.num_workers}, "
            f"and the cluster has {resources.num_cpus}: use fewer workers, or set ray.num_cpus to share the CPUs"
        )
    return Placement(num_cpus, use_gpu)


def run_training(
    job: TrainJob, resources: Resources, scratch: Path, on_messages: Callable[[list[Message]], None]
) -> Path:
    """Train and return the folder of the last checkpoint.

    Ray keeps nothing that a resume needs: a worker group finds the newest whole checkpoint by itself.

    Args:
        job: what to train.
        resources: of the running cluster.
        scratch: folder for Ray's own notes, seen by every node; of no use after the call.
        on_messages: called in this thread with what the workers posted, several times a second.

    Raises:
        UserError: the data or the settings do not allow it, or the workers failed too often.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    trainer = _trainer(job, place(job.train, resources), scratch, board)
    # In a thread of its own `fit` leaves Ctrl-C to us, and this one is free to watch.
    with ThreadPoolExecutor(1) as pool:
        fit = pool.submit(trainer.fit)
        try:
            while not fit.done():
                time.sleep(_POLL_SECONDS)
                on_messages(ray.get(board.take.remote()))
            on_messages(ray.get(board.take.remote()))
        except BaseException:
            ray.shutdown()  # ends the workers, so that the thread can end
            raise
    return _checkpoint_of(fit)


def _trainer(job: TrainJob, placement: Placement, scratch: Path, board: Any) -> TorchTrainer:
    return TorchTrainer(
        _worker_loop,  # type: ignore[arg-type]  # its annotation denies the return value that Result has
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=job.train.num_workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={"CPU": placement.num_cpus, **({"GPU": 1} if placement.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(scratch),
            failure_config=FailureConfig(
                max_failures=job.train.max_failures,
                controller_failure_limit=1,  # type: ignore[call-arg]  # the annotations are those of V1
            ),
        ),
    )


def _checkpoint_of(fit: Future[Any]) -> Path:
    try:
        return Path(fit.result().return_value)
    except WorkerGroupError as error:
        cause = next(iter(error.worker_failures.values()), error)
        raise _readable(cause) from error
    except (TrainingFailedError, RayError) as error:
        raise _readable(error) from error


def _readable(error: BaseException) -> UserError:
    """A UserError from a worker as it was; anything else in one line with its type."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return UserError(str(cause))
        cause = cause.__cause__ or getattr(cause, "cause", None)
    lines = [line for line in str(error).strip().split("\n") if line.strip()]
    return UserError(f"training failed: {lines[-1] if lines else type(error).__name__}")


def _worker_loop(config: dict[str, Any]) -> str:
    """Runs on each worker."""
    job: TrainJob = config["job"]
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
    )
    board = config["board"]
    return str(train_model(job, worker, board.post.remote))


def _distributed(module: torch.nn.Module) -> torch.nn.Module:
    wrapped: torch.nn.Module = ray.train.torch.prepare_model(module, move_to_device=False)
    return wrapped
