"""The train job: Ray Train runs the training loop on one worker or many, and the driver follows their events."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from jobs.cluster.driver_loop import DriverLoop, ray_error_reason
from jobs.cluster.event_queue import make_event_queue
from jobs.cluster.failure_policy import FailurePolicy
from jobs.cluster.ray_cluster import Resources
from jobs.cluster.resources import allocate
from jobs.events import Event
from jobs.training.state import TrainJob
from jobs.training.worker import StoppableTorch, train_worker

_GRACE_SECONDS = 20.0  # a node that is taken away gives thirty seconds or more
_START_FAILURES = 3  # failed starts of a worker group in a row


def run_training(
    job: TrainJob,
    resources: Resources,
    scratch: Path,
    on_events: Callable[[list[Event]], None],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    shut_down: Callable[[], Any] = ray.shutdown,
) -> int:
    """Train a model from its newest checkpoint, which each worker group looks up itself, or from the start.

    Args:
        job: The training.
        resources: Resources of the running cluster.
        scratch: Folder for Ray's files, seen by every node. It can be deleted after the call.
        on_events: Called in this thread with the events of the workers, several times a second.
        should_stop: Polled as often. True stops the training as Ctrl-C does.
        shut_down: Ends the workers of a training that failed or was stopped.

    Returns:
        The last step, which has a checkpoint.

    Raises:
        UserError: The data or the settings are invalid.
        TrainingError: The training failed for reasons of its own, or its workers failed too often.
        KeyboardInterrupt: The training was stopped: after a last checkpoint, or at once on a second Ctrl-C.
    """
    config, worker = job.train, allocate(job.train, resources)
    event_queue = make_event_queue()
    shares_gpu = 0 < worker.num_gpus < 1 and config.num_workers > 1  # NCCL refuses two workers on one GPU
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its annotation denies the return value that Result has
        train_loop_config={"job": job, "event_queue": event_queue, "threads": worker.threads},
        torch_config=StoppableTorch(backend="gloo" if shares_gpu else None, event_queue=event_queue, scratch=scratch),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if config.min_workers else config.num_workers,  # type: ignore[arg-type]
            use_gpu=worker.num_gpus > 0,
            resources_per_worker=worker.resources,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(scratch),
            failure_config=FailureConfig(
                max_failures=-1,  # FailurePolicy counts the failures between two checkpoints, which Ray cannot
                controller_failure_limit=_START_FAILURES,  # type: ignore[call-arg]  # the annotations are those of V1
            ),
        ),
    )
    policy = FailurePolicy(config.max_failures)
    loop = DriverLoop(event_queue, on_events, policy, grace_seconds=_GRACE_SECONDS, shut_down=shut_down)
    result = loop.run(trainer.fit, should_stop)
    try:
        return int(result.result().return_value)
    except (TrainingFailedError, RayError) as error:
        policy.reason = policy.reason or ray_error_reason(error)
        raise policy.error("training failed in Ray") from error
