"""Data-parallel workers as threads of one process, because processes take seconds to start."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from jobs.data.loader import BatchLoader
from jobs.training.state import Training, TrainJob, Worker, prepare

_Result = TypeVar("_Result")


def worker_training(job: TrainJob, rank: int, world_size: int) -> Training:
    """Return the training of one of several workers, which has no process group."""
    training = prepare(job, Worker())
    data, order = training.loader.data, training.loader.order
    loader = BatchLoader(data, order, num_microbatches=job.train.num_microbatches, rank=rank, world_size=world_size)
    return replace(training, loader=loader, worker=Worker(rank=rank, world_size=world_size))


def run_threads(
    trainings: list[Training], work: Callable[[Training], _Result], monkeypatch: pytest.MonkeyPatch
) -> list[_Result]:
    """Return the results of `work` for each worker; `all_reduce` and the gradients' means are over the threads."""
    world_size, local, values = len(trainings), threading.local(), dict[int, Tensor]()
    barrier = threading.Barrier(world_size, timeout=60)

    def all_reduce(tensor: Tensor) -> None:
        values[local.rank] = tensor.clone()
        barrier.wait()
        total = torch.stack([values[rank] for rank in range(world_size)]).sum(0)
        barrier.wait()
        tensor.copy_(total)

    def average(parameter: nn.Parameter) -> None:  # as DistributedDataParallel does
        assert parameter.grad is not None
        all_reduce(parameter.grad)
        parameter.grad.div_(world_size)

    def run(training: Training) -> _Result:
        local.rank = training.worker.rank
        for parameter in training.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(average)
        return work(training)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, trainings))
