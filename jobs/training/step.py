"""One update of the weights: gradients of a global batch, as plain data parallelism or exactly, slice by slice."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.data.sampling import splitmix64, worker_slices
from jobs.device import autocast, to_device
from jobs.training.ema import averaged_model
from jobs.training.ordered_sum import sum_over_slices
from jobs.training.state import Training
from vlae.models.base import ElboTerms, HierarchicalModel, Latents
from vlae.models.vlae import Vlae
from vlae.objective import objective_loss
from vlae.schedule import mmd_weights, rung_schedule

LOSS, RECONSTRUCTION, NORM, BAD, KL = range(5)  # places in what a step returns; KL is that of the bottom rung
_PRIOR = 2**61  # added to the step, it keys the samples of the prior that the MMD looks at


def train_step(training: Training, images: Tensor) -> Tensor:
    """One update of the weights, by this worker's uint8 images of the step.

    An update whose loss or gradient is not finite is left out: weights, moments, their average and running statistics
    stay as they were, and only counters go on.

    Returns:
        float32 (4 + L,) on the device: loss, reconstruction, gradient norm, 1 if the update was left out, then the KL
        of each rung. Nats per image; the sum over the workers is the mean over the global batch, or in exact mode each
        worker's values are.
    """
    job, worker, step = training.job, training.worker, training.step
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(job.train, step)
    state = rung_schedule(job.objective, job.progressive, step, len(training.model.latent_dims))
    if job.progressive.stage_steps:
        for model in (training.model, averaged_model(training.ema, training.model)):
            if isinstance(model, Vlae):
                model.set_gates(state.reads, state.writes)
    running = training.running
    before = [tensor.detach().clone() for tensor in running]
    gradients = _exact_gradients if job.train.deterministic else _plain_gradients
    values = gradients(training, images, state.kl_weights, before)
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), job.train.max_grad_norm)
    training.bad.copy_(~torch.isfinite(norm))
    training.optimizer.step()
    for tensor, old in zip(running, before, strict=True):
        tensor.data.copy_(torch.where(training.bad > 0, old, tensor.data))
    if training.ema is not None:
        training.ema.update_parameters(training.model)
    share = 1.0 if job.train.deterministic else len(training.loader.slices) / job.train.num_microbatches
    shared = torch.stack([norm.detach(), training.bad]) * share
    return torch.cat([values[:NORM], shared.to(worker.device), values[NORM:]])


def _plain_gradients(training: Training, images: Tensor, kl_weights: Sequence[float], _: Sequence[Tensor]) -> Tensor:
    """Gradients of this worker's share, averaged over the workers by what wraps the module."""
    worker, loader, config = training.worker, training.loader, training.job.train
    count = len(loader.slices)
    passes = min(config.gradient_accumulation_steps, count)
    training.optimizer.zero_grad()
    total: Tensor | float = 0.0
    for number in range(passes):
        part = worker_slices(count, number, passes)
        alone = worker.world_size > 1 and number < passes - 1
        with training.module.no_sync() if alone else nullcontext():  # type: ignore[operator]
            rows = images[part.start * loader.slice_size : part.stop * loader.slice_size]
            loss, values = _evaluate(training, rows, loader.slices[part.start : part.stop], kl_weights)
            share = len(part) / config.num_microbatches
            _backward(loss, share * worker.world_size)
        total = total + share * values
    if worker.world_size > 1 and training.running:
        _average_running(training, count / config.num_microbatches)
    return torch.as_tensor(total)


def _exact_gradients(
    training: Training, images: Tensor, kl_weights: Sequence[float], before: Sequence[Tensor]
) -> Tensor:
    """Gradients, running statistics and values of each slice by itself, added up in a fixed tree."""
    loader, size, worker = training.loader, training.loader.slice_size, training.worker
    trained = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    start = [*before, *(tensor.clone() for tensor in training.counters)]
    reached: list[nn.Parameter] = []  # by the gradient: the same ones for every slice

    def of_slice(number: int) -> list[Tensor]:
        for tensor, old in zip([*training.running, *training.counters], start, strict=True):
            tensor.data.copy_(old)
        training.optimizer.zero_grad()
        row = (number - loader.slices.start) * size
        loss, values = _evaluate(training, images[row : row + size], range(number, number + 1), kl_weights)
        _backward(loss, 1.0)
        reached[:] = [parameter for parameter in trained if parameter.grad is not None]
        gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
        training.optimizer.zero_grad()  # gradients are ours now
        return [*gradients, *(tensor.detach().clone() for tensor in training.running), values]

    sums = sum_over_slices(training.job.train.num_microbatches, worker.rank, worker.world_size, of_slice)
    means = [tensor.mul_(1 / training.job.train.num_microbatches) for tensor in sums]
    for parameter, mean in zip(reached, means, strict=False):
        # A fused optimizer walks weights and gradients in memory order: they must be laid out alike.
        parameter.grad = torch.empty_like(parameter).copy_(mean)
    for tensor, mean in zip(training.running, means[len(reached) : -1], strict=True):
        tensor.data.copy_(mean)
    return means[-1]


def _evaluate(training: Training, images: Tensor, slices: range, kl_weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The loss of some slices, and its parts: loss, reconstruction, KL of each rung, nats per image."""
    job, device, size = training.job, training.worker.device, training.loader.slice_size
    pixels = to_device(images, device)
    noise = slice_noise(training.model, slices, size, job.seed, training.step, device)
    with autocast(job.train, device):
        terms: ElboTerms = training.module(pixels, noise)
    prior, weights = None, mmd_weights(job.objective, training.step, len(training.model.latent_dims))
    if any(weights):
        drawn = slice_noise(training.model, slices, size, job.seed, _PRIOR + training.step, device)
        prior = training.model.prior(drawn)
    loss = objective_loss(terms, kl_weights, job.objective, prior, weights)
    parts = [loss.detach()[None], terms.reconstruction.detach().mean()[None], terms.kl.detach().mean(0)]
    return loss, torch.cat(parts).float()


def _backward(loss: Tensor, share: float) -> None:
    """Add the gradient of share * loss; a loss that is not finite makes it so, and with it that of all workers."""
    seed = torch.where(torch.isfinite(loss.detach()), share, torch.nan)
    loss.backward(seed)  # type: ignore[no-untyped-call]


def _average_running(training: Training, share: float) -> None:
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in training.running]) * share
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in training.running])
    for tensor, part in zip(training.running, parts, strict=True):
        tensor.data.copy_(part.view(tensor.shape))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear rise over the warm-up, then half a cosine down to zero at the last step, or no change."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def slice_noise(
    model: HierarchicalModel, slices: range, size: int, seed: int, step: int, device: torch.device
) -> Latents:
    """The noise of some slices of `size` images: a function of (seed, step, slice), whoever computes the slice."""
    draw: Callable[[int], Latents] = lambda number: model.noise(  # noqa: E731
        size, torch.Generator(device).manual_seed(int(splitmix64(seed, step, number)) >> 1)
    )
    return [torch.cat(rung) for rung in zip(*map(draw, slices), strict=True)]
