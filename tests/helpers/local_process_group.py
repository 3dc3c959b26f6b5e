"""Several real workers without Ray: processes of one group over gloo."""

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


def _train(job: TrainJob, rank: int, world_size: int, meeting: str, stop_at: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    messages: list[Event] = []
    worker = Worker(rank=rank, world_size=world_size, wrap=_distributed if world_size > 1 else Worker.wrap)

    def stop() -> bool:
        done = [message.step for message in messages if isinstance(message, MetricPoint)]
        return bool(stop_at and done and done[-1] >= stop_at)

    with suppress(StoppedError):
        train_model(job, replace(worker, stop=stop), messages.append)
    pipe.send(messages)
    if world_size > 1 and not stop_at:
        dist.barrier()
    os._exit(0)  # gloo may abort a process that tidies up when others have gone


def train(job: TrainJob, world_size: int, stop_at: int = 0) -> list[Event]:
    """Train with so many workers of one thread each; with `stop_at` they are stopped, and killed, after that step."""
    context: Any = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        ends = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(target=_train, args=(job, rank, world_size, meeting, stop_at, ends[rank][1]))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for _, sender in ends:
            sender.close()  # so that the end of a worker is seen
        try:
            messages: list[Event] = ends[0][0].recv()
            if stop_at:
                for process in processes:
                    process.kill()
            for process in processes:
                process.join()
                assert stop_at or process.exitcode == 0
        finally:
            for process, (receiver, _) in zip(processes, ends, strict=True):
                process.kill()
                process.join()
                process.close()
                receiver.close()
    return messages


def curve(messages: list[Event]) -> dict[int, dict[str, float]]:
    """Metrics by step, without the speed."""
    found: dict[int, dict[str, float]] = {}
    for message in messages:
        if isinstance(message, MetricPoint):
            kept = {name: value for name, value in message.metrics.items() if "second" not in name}
            found[message.step] = {**found.get(message.step, {}), **kept}
    return found
