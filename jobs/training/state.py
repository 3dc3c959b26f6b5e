"""A training under way on one worker: what it is made of, and how it is set up or taken up again."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.checkpoints.format import Restored, restore
from jobs.checkpoints.manager import Checkpoints
from jobs.config import TrainConfig
from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import Order
from jobs.data.shard_reader import DataAccess
from jobs.errors import CorruptedError, UnavailableError
from jobs.training.ema import average_weights
from vlae.config import AnyModelConfig, ObjectiveConfig, ProgressiveConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to know. Local folders are absolute and seen by every worker."""

    model: AnyModelConfig
    objective: ObjectiveConfig
    progressive: ProgressiveConfig
    train: TrainConfig
    seed: int
    data: DataAccess
    checkpoints: str  # their place: a folder, or s3://bucket/prefix
    settings: Mapping[str, str] = field(default_factory=dict)  # that define the training, as the command spells them


@dataclass(frozen=True)
class Worker:
    """This process among the others."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, where there are several
    stop: Callable[[], bool] = lambda: False  # whether to make a checkpoint and end; asked after every step


@dataclass
class Training:
    """A training under way on one worker."""

    job: TrainJob
    worker: Worker
    loader: BatchLoader
    model: HierarchicalModel
    module: nn.Module  # the model as it is called: compiled and distributed where asked for
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None  # of the weights, if asked for
    running: list[Tensor]  # changed without a gradient: statistics of batch normalization, an optimal scale
    counters: list[Tensor]  # integers of the model's state: batches that batch normalization has seen
    bad: Tensor  # float32 scalar on the device: 1 if the last step's loss or gradient was not finite
    restored: Restored  # where it was taken up
    step: int  # updates made


def prepare(job: TrainJob, worker: Worker) -> Training:
    """Data, model and optimizer, as the newest whole checkpoint left them.

    Raises:
        UserError: the data is missing or damaged, or the checkpoint is of other settings.
    """
    config, data = job.train, ShardedDataset(job.data, "train")
    resident = keeps_resident(config, data, worker.device)
    if resident is None:
        data.check_capacity(config.shuffle_block_shards, config.batch_size)
    order = Order(data.shard_sizes, batch_size=config.batch_size, seed=job.seed, window=config.shuffle_block_shards)
    loader = BatchLoader(
        data,
        order,
        num_microbatches=config.num_microbatches,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        resident=resident,
    )
    model = build_model(job.model, data.image_shape, job.seed)
    model = model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True)
    bad = torch.zeros((), device=worker.device)
    # The fused optimizer leaves weights and moments as they are where this is 1, and nobody has to wait for the device.
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    ema = average_weights(model, config.ema_decay, bad)
    restored = _take_up(job, worker, model, optimizer, ema)
    module: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    if not config.deterministic:  # which adds gradients up itself
        module = worker.wrap(module)
    untrained = [tensor for tensor in model.state_dict(keep_vars=True).values() if not tensor.requires_grad]
    running = [tensor for tensor in untrained if tensor.is_floating_point()]
    counters = [tensor for tensor in untrained if not tensor.is_floating_point()]
    return Training(job, worker, loader, model, module, optimizer, ema, running, counters, bad, restored, restored.step)


def keeps_resident(config: TrainConfig, data: ShardedDataset, device: torch.device) -> torch.device | None:
    """Where all training images are kept, if they are."""
    if config.preload == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return device if data.num_bytes <= free / 4 else None
    return {"ram": torch.device("cpu"), "device": device}.get(config.preload)


def _take_up(
    job: TrainJob,
    worker: Worker,
    model: HierarchicalModel,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
) -> Restored:
    """Load the newest whole checkpoint: the same on every worker, whatever a dying one may publish meanwhile."""
    place = Checkpoints(job.checkpoints)
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        newest: Path | None = None
        damaged: list[int] = []
        if worker.rank == 0:
            place.sweep()
            newest = place.newest(Path(folder))
            damaged = [step for step in place.steps() if newest is None or step > place.step_of(newest)]
        if worker.world_size > 1:
            step = torch.tensor(place.step_of(newest) if newest else -1, device=worker.device)
            dist.broadcast(step, 0)
            if worker.rank and step >= 0:
                newest = _fetch(place, int(step), Path(folder))
        if newest is None:
            return Restored(0, [], [], passed_over=damaged)
        return replace(restore(newest, model, optimizer, ema, job.settings), passed_over=damaged)


def _fetch(place: Checkpoints, step: int, folder: Path) -> Path:
    """The checkpoint that rank 0 has found whole.

    Raises:
        AwayError: it is gone since: the writer of an earlier group may have lived a moment longer.
    """
    try:
        return place.fetch(step, folder)
    except CorruptedError as error:
        raise UnavailableError(f"the checkpoint went away while the workers took it up: {error}") from error
