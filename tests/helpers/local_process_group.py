"""Several real workers without Ray: the processes of one gloo group."""

import multiprocessing
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jobs.events import Event, MetricPoint
from jobs.training.loop import StoppedError, train_model
from jobs.training.state import TrainJob, Worker


def _distributed(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, broadcast_buffers=False)


def _train(job: TrainJob, rank: int, world_size: int, rendezvous: str, stop_at: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    events: list[Event] = []
    worker = Worker(rank=rank, world_size=world_size, wrap=_distributed if world_size > 1 else Worker.wrap)

    def stop() -> bool:
        steps = [event.step for event in events if isinstance(event, MetricPoint)]
        return bool(stop_at and steps and steps[-1] >= stop_at)

    with suppress(StoppedError):
        train_model(job, replace(worker, stop=stop), events.append)
    pipe.send(events)
    if world_size > 1 and not stop_at:
        dist.barrier()
    os._exit(0)  # because gloo may abort a process that shuts down after the others


def train(job: TrainJob, world_size: int, stop_at: int = 0) -> list[Event]:
    """Train with workers of one thread each and return the events.

    Args:
        job: Settings of the training.
        world_size: Number of workers.
        stop_at: Step after which the workers are stopped and killed; 0 trains to the end.
    """
    context: Any = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(target=_train, args=(job, rank, world_size, rendezvous, stop_at, pipes[rank][1]))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()  # so that the end of a worker ends the receive
        try:
            events: list[Event] = pipes[0][0].recv()
            if stop_at:
                for process in processes:
                    process.kill()
            for process in processes:
                process.join()
                assert stop_at or process.exitcode == 0
        finally:
            for process, (receiver, _) in zip(processes, pipes, strict=True):
                process.kill()
                process.join()
                process.close()
                receiver.close()
    return events


def curve(events: list[Event]) -> dict[int, dict[str, float]]:
    """Return the metrics by step, without the speed."""
    metrics: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event, MetricPoint):
            kept = {name: value for name, value in event.metrics.items() if "second" not in name}
            metrics[event.step] = {**metrics.get(event.step, {}), **kept}
    return metrics
