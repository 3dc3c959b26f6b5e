"""One update of the weights from a global batch: as plain data parallelism, or deterministic by microbatch."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.data.sampling import splitmix64, worker_microbatches
from jobs.device import autocast, to_device
from jobs.training.metrics import StepMetrics
from jobs.training.ordered_sum import sum_over_microbatches
from jobs.training.state import Training
from vlae.models.base import ElboTerms, HierarchicalModel, Latents
from vlae.models.vlae import Vlae
from vlae.objective import objective_loss
from vlae.schedule import mmd_weights, rung_schedule

_PRIOR_NOISE = 2**61  # added to the step in the key of the noise for the MMD's samples of the prior


def train_step(training: Training, images: Tensor) -> StepMetrics:
    """Update the weights from this worker's images of the step.

    An update whose loss or gradient is not finite is skipped: weights, moments, moving average and running statistics
    stay unchanged, and only counters advance.

    Args:
        training: State of the training, updated in place except for its step.
        images: uint8 (B, C, H, W), this worker's microbatches one after the other.

    Returns:
        Metrics weighted by `metric_weight`. Their sum over the workers is the metric of the global batch.
    """
    job, step = training.job, training.step
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(job.train, step)
    schedule = rung_schedule(job.objective, job.progressive, step, len(training.model.latent_dims))
    if job.progressive.stage_steps:
        for model in (training.model, training.averaged_model):
            if isinstance(model, Vlae):
                model.set_gates(schedule.input_gates, schedule.output_gates)
    stats_before = [tensor.detach().clone() for tensor in training.running_stats]
    if job.train.deterministic:
        metrics = _deterministic_gradients(training, images, schedule.kl_weights, stats_before)
    else:
        metrics = _data_parallel_gradients(training, images, schedule.kl_weights)
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), job.train.max_grad_norm)
    training.nonfinite.copy_(~torch.isfinite(norm))
    training.optimizer.step()
    for tensor, before in zip(training.running_stats, stats_before, strict=True):
        tensor.data.copy_(torch.where(training.nonfinite > 0, before, tensor.data))
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    weight = training.metric_weight
    return replace(metrics, grad_norm=norm.detach() * weight, nonfinite=training.nonfinite * weight)


def _data_parallel_gradients(training: Training, images: Tensor, kl_weights: Sequence[float]) -> StepMetrics:
    """Return the metrics after the gradients, which DistributedDataParallel averages over the workers."""
    worker, loader, config = training.worker, training.loader, training.job.train
    count = len(loader.microbatches)
    passes = min(config.gradient_accumulation_steps, count)
    training.optimizer.zero_grad()
    total: Tensor | float = 0.0
    for index in range(passes):
        chunk = worker_microbatches(count, index, passes)
        accumulate = worker.world_size > 1 and index < passes - 1
        with training.module.no_sync() if accumulate else nullcontext():  # type: ignore[operator]
            rows = images[chunk.start * loader.microbatch_size : chunk.stop * loader.microbatch_size]
            loss, metrics = _forward(training, rows, loader.microbatches[chunk.start : chunk.stop], kl_weights)
            fraction = len(chunk) / config.num_microbatches
            _backward(loss, fraction * worker.world_size)
        total = total + fraction * metrics.pack()
    if worker.world_size > 1 and training.running_stats:
        sizes = [tensor.numel() for tensor in training.running_stats]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in training.running_stats])
        flat = flat * training.metric_weight
        dist.all_reduce(flat)
        for tensor, mean in zip(training.running_stats, torch.split(flat, sizes), strict=True):
            tensor.data.copy_(mean.view(tensor.shape))
    return StepMetrics.unpack(torch.as_tensor(total))


def _deterministic_gradients(
    training: Training, images: Tensor, kl_weights: Sequence[float], stats_before: Sequence[Tensor]
) -> StepMetrics:
    """Return the metrics after the gradients, both summed over single microbatches in a fixed order."""
    loader, size, worker = training.loader, training.loader.microbatch_size, training.worker
    num_microbatches = training.job.train.num_microbatches
    trained = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    start = [*stats_before, *(tensor.clone() for tensor in training.counters)]
    reached: list[nn.Parameter] = []  # parameters with a gradient, the same for every microbatch

    def compute(index: int) -> list[Tensor]:
        for tensor, before in zip([*training.running_stats, *training.counters], start, strict=True):
            tensor.data.copy_(before)
        training.optimizer.zero_grad()
        row = (index - loader.microbatches.start) * size
        loss, metrics = _forward(training, images[row : row + size], range(index, index + 1), kl_weights)
        _backward(loss, 1.0)
        reached[:] = [parameter for parameter in trained if parameter.grad is not None]
        gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
        training.optimizer.zero_grad()  # drops the references, so that the sum may change the gradients in place
        return [*gradients, *(tensor.detach().clone() for tensor in training.running_stats), metrics.pack()]

    sums = sum_over_microbatches(num_microbatches, worker.rank, worker.world_size, compute)
    means = [tensor.mul_(1 / num_microbatches) for tensor in sums]
    for parameter, mean in zip(reached, means, strict=False):
        # torch's fused optimizers walk weights and gradients in memory order, so both need the same strides.
        parameter.grad = torch.empty_like(parameter).copy_(mean)
    for tensor, mean in zip(training.running_stats, means[len(reached) : -1], strict=True):
        tensor.data.copy_(mean)
    return StepMetrics.unpack(means[-1])


def _forward(
    training: Training, images: Tensor, microbatches: range, kl_weights: Sequence[float]
) -> tuple[Tensor, StepMetrics]:
    """Return the loss of some microbatches and its metrics, in which gradient norm and nonfinite flag are still 0."""
    job, device, size = training.job, training.worker.device, training.loader.microbatch_size
    noise = microbatch_noise(training.model, microbatches, size, job.seed, training.step, device)
    with autocast(job.train, device):
        terms: ElboTerms = training.module(to_device(images, device), noise)
    prior, weights = None, mmd_weights(job.objective, training.step, len(training.model.latent_dims))
    if any(weights):
        key = _PRIOR_NOISE + training.step
        prior = training.model.prior(microbatch_noise(training.model, microbatches, size, job.seed, key, device))
    loss = objective_loss(terms, kl_weights, job.objective, prior, weights)
    zero = torch.zeros((), device=device)
    reconstruction, kl = terms.reconstruction.detach().mean(), terms.kl.detach().mean(0)
    return loss, StepMetrics(loss.detach(), reconstruction, grad_norm=zero, nonfinite=zero, kl=kl)


def _backward(loss: Tensor, weight: float) -> None:
    """Add the gradient of weight * loss, which is NaN for a loss that is not finite, and then on all workers."""
    seed = torch.where(torch.isfinite(loss.detach()), weight, torch.nan)
    loss.backward(seed)  # type: ignore[no-untyped-call]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate after `step` updates: linear warm-up, then half a cosine to zero, or constant.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983.
    """
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def microbatch_noise(
    model: HierarchicalModel, microbatches: range, size: int, seed: int, step: int, device: torch.device
) -> Latents:
    """Return the noise of each rung, bottom first, for microbatches of `size` images, one microbatch after the other.

    It depends on (seed, step, index in the global batch), not on the workers; `step` may be another key.
    """
    noise = [
        model.noise(size, torch.Generator(device).manual_seed(int(splitmix64(seed, step, index)) >> 1))
        for index in microbatches
    ]
    return [torch.cat(rung) for rung in zip(*noise, strict=True)]
