"""The state of a training on one worker: how it is set up, resumed and copied for a checkpoint."""

import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobs.checkpoints.format import Restored, Snapshot, restore
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import GlobalShuffle
from jobs.data.shard_reader import DataAccess
from jobs.errors import CorruptedError, UnavailableError
from jobs.events import MetricPoint
from vlae.config import AnyModelConfig, ObjectiveConfig, ProgressiveConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model


@dataclass(frozen=True)
class TrainJob:
    """A training. Local folders are absolute and visible to every worker.

    Attributes:
        seed: Random seed for weights, data order and noise.
        checkpoints: Address of the checkpoints: a folder, or s3://bucket/prefix.
        settings: Settings that define the training, as the command spells them.
        owner: Name of the command that must own the checkpoints to write them; empty if no other workspace can.
    """

    model: AnyModelConfig
    objective: ObjectiveConfig
    progressive: ProgressiveConfig
    train: TrainConfig
    seed: int
    data: DataAccess
    checkpoints: str
    settings: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""


@dataclass(frozen=True)
class Worker:
    """This process among the workers.

    Attributes:
        wrap: Wraps the module in DistributedDataParallel where there are several workers.
        stop: Returns whether to save a checkpoint and stop; called after every step.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    stop: Callable[[], bool] = lambda: False


@dataclass
class Training:
    """A training on one worker, after `step` updates.

    Attributes:
        module: The model as it is called: compiled and distributed where the settings say so.
        ema: Moving average of the weights; None where `train.ema_decay` is 0.
        running_stats: Tensors that change without a gradient: statistics of batch normalization, an optimal scale.
        counters: Integers of the model's state: batches that batch normalization has seen.
        nonfinite: float32 scalar on the device: 1 if the last step's loss or gradient was not finite, else 0.
        restored: State that the training resumed from.
        warnings: Texts of the training's warnings by key.
    """

    job: TrainJob
    worker: Worker
    loader: BatchLoader
    model: HierarchicalModel
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    running_stats: list[Tensor]
    counters: list[Tensor]
    nonfinite: Tensor
    restored: Restored
    step: int
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def averaged_model(self) -> HierarchicalModel:
        """The model to evaluate: the moving average of the weights where there is one."""
        if self.ema is None:
            return self.model
        module: nn.Module = self.ema.module
        assert isinstance(module, HierarchicalModel)  # noqa: S101  (AveragedModel holds a copy of the model)
        return module

    @property
    def metric_weight(self) -> float:
        """Weight of this worker's metrics in the sum over workers: its fraction of the global batch.

        1 in deterministic training, because each worker then holds the metrics of the global batch.
        """
        if self.job.train.deterministic:
            return 1.0
        return len(self.loader.microbatches) / self.job.train.num_microbatches


def prepare(job: TrainJob, worker: Worker) -> Training:
    """Return the training at its newest intact checkpoint, or at step 0.

    Raises:
        UserError: The data is missing or damaged, or the checkpoint belongs to other settings.
    """
    config, data = job.train, ShardedDataset(job.data, "train")
    preload = _preload_device(config, data, worker.device)
    if preload is None:
        data.check_capacity(config.shuffle_block_shards, config.batch_size)
    order = GlobalShuffle(
        data.shard_sizes, batch_size=config.batch_size, seed=job.seed, block_shards=config.shuffle_block_shards
    )
    loader = BatchLoader(
        data,
        order,
        num_microbatches=config.num_microbatches,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        preload=preload,
    )
    model = build_model(job.model, data.image_shape, job.seed)
    model = model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True)
    nonfinite = torch.zeros((), device=worker.device)
    # torch's fused optimizers skip the update where `found_inf` is 1, without a transfer to the host.
    optimizer.found_inf = nonfinite  # type: ignore[attr-defined]
    ema = _average_weights(model, config.ema_decay, nonfinite)
    restored = _resume(job, worker, model, optimizer, ema)
    module: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    if not config.deterministic:  # which sums the gradients itself
        module = worker.wrap(module)
    untrained = [tensor for tensor in model.state_dict(keep_vars=True).values() if not tensor.requires_grad]
    return Training(
        job=job,
        worker=worker,
        loader=loader,
        model=model,
        module=module,
        optimizer=optimizer,
        ema=ema,
        running_stats=[tensor for tensor in untrained if tensor.is_floating_point()],
        counters=[tensor for tensor in untrained if not tensor.is_floating_point()],
        nonfinite=nonfinite,
        restored=restored,
        step=restored.step,
        warnings=dict(restored.warnings),
    )


def _preload_device(config: TrainConfig, data: ShardedDataset, device: torch.device) -> torch.device | None:
    """Return the device that holds all training images, or None where they are read batch by batch."""
    if config.preload == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return device if data.num_bytes <= free / 4 else None
    return {"ram": torch.device("cpu"), "device": device}.get(config.preload)


def _average_weights(model: HierarchicalModel, decay: float, nonfinite: Tensor) -> AveragedModel | None:
    """Return the moving average of the weights, which skips an update where `nonfinite` is 1."""
    if decay == 0:
        return None

    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))  # so that the first weights are forgotten early
        if nonfinite.device.type == "cpu":
            torch._foreach_lerp_(averaged, current, (1 - kept) * (1 - nonfinite.item()))
        else:  # as a tensor, because item() would wait for the device
            torch._foreach_lerp_(averaged, current, [(1 - kept) * (1 - nonfinite)] * len(averaged))

    return AveragedModel(model, multi_avg_fn=average)  # type: ignore[arg-type]


def _resume(
    job: TrainJob, worker: Worker, model: HierarchicalModel, optimizer: torch.optim.Optimizer, ema: AveragedModel | None
) -> Restored:
    # Rank 0 chooses the checkpoint, because the writer of an earlier worker group may still publish another one.
    manager = CheckpointManager(job.checkpoints, job.owner)
    with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
        latest: Path | None = None
        damaged: list[int] = []
        if worker.rank == 0:
            manager.sweep()
            latest = manager.latest(Path(folder))
            damaged = [step for step in manager.steps() if latest is None or step > manager.step_of(latest)]
        if worker.world_size > 1:
            step = torch.tensor(manager.step_of(latest) if latest else -1, device=worker.device)
            dist.broadcast(step, 0)
            if worker.rank and step >= 0:
                try:
                    latest = manager.load(int(step), Path(folder))
                except CorruptedError as error:
                    raise UnavailableError(f"{error} It was replaced while the workers loaded it.") from error
        if latest is None:
            return Restored(0, [], [], skipped=damaged)
        return replace(restore(latest, model, optimizer, ema, job.settings), skipped=damaged)


def take_snapshot(
    training: Training, history: list[MetricPoint], pending: list[list[float]], validation_elbo: float | None
) -> Snapshot:
    """Copy the state of a training to CPU memory of its own: the only work for a checkpoint that training waits for."""
    job, model, ema = training.job, training.model, training.ema
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments = training.optimizer.state_dict()["state"]
    return Snapshot(
        step=training.step,
        validation_elbo=validation_elbo,
        weights=_copy(training.averaged_model.state_dict()),
        trained=None if ema is None else _copy(model.state_dict()),
        optimizer=_copy(
            {f"{names[i]}:{entry}": value for i, state in moments.items() for entry, value in state.items()}
        ),
        history=list(history),
        pending=pending,
        warnings=dict(training.warnings),
        meta={
            "model": job.model.model_dump(mode="json"),
            "image_shape": model.image_shape,
            "settings": dict(job.settings),
            "data_fingerprint": training.loader.data.manifest.fingerprint,
            "ema_updates": 0 if ema is None else int(ema.n_averaged),
            "machine": machine_info(training.worker.device) if job.train.deterministic else None,
            "versions": {name: version(name) for name in ("vlae-pipeline", "torch", "ray")},
        },
    )


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU, because safetensors stores nothing else."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in tensors.items()
    }


def machine_info(device: torch.device) -> dict[str, Any]:
    """Return what the bits of a sum depend on: `device` (cpu or cuda), `processor` name, torch `threads` (CUDA: 0)."""
    if device.type == "cuda":
        return {"device": "cuda", "processor": torch.cuda.get_device_name(device), "threads": 0}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return {"device": "cpu", "processor": processor, "threads": torch.get_num_threads()}
