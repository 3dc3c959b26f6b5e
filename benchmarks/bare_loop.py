"""The baseline of `train_loop`: the same model in a short handwritten loop, on images in RAM."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jobs.config import TrainConfig
from jobs.device import autocast
from vlae.config import ObjectiveConfig
from vlae.models.base import HierarchicalModel
from vlae.objective import objective_loss

_CPU = torch.device("cpu")


def learning_rate(config: TrainConfig) -> Callable[[int], float]:
    """Return the factor of a step: linear warm-up, then half a cosine."""

    def factor(step: int) -> float:
        if step < config.lr_warmup_steps:
            return (step + 1) / config.lr_warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - config.lr_warmup_steps) / (config.steps - config.lr_warmup_steps)))

    return factor


def bare_loop(
    model: HierarchicalModel,
    images: Tensor,
    config: TrainConfig,
    objective: ObjectiveConfig,
    log: Callable[[int, float], None],
    stop: Callable[[], bool],
) -> None:
    """Train without workers, checkpoints, checks for nonfinite values, or a curve beyond the loss of some steps.

    Args:
        model: Model with its initial weights, channels last.
        images: Images of the train split, (N, H, W, C) uint8.
        config: Batch size, optimizer, schedule, moving average, precision and log interval.
        objective: Default objective: a KL weight that rises to 1.
        log: Receives a step and its loss.
        stop: Returns whether to stop; called after every step.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True
    )
    schedule = LambdaLR(optimizer, learning_rate(config))
    average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    ema = AveragedModel(model, multi_avg_fn=average) if config.ema_decay else None
    size, position, order = config.batch_size, 0, torch.randperm(len(images))
    for step in range(config.steps):
        if position + size > len(order):
            position, order = 0, torch.randperm(len(images))
        pixels = images[order[position : position + size]].permute(0, 3, 1, 2).float() / 255
        position += size
        noise = [torch.randn(size, dim) for dim in model.latent_dims]
        with autocast(config, _CPU):
            terms = model(pixels, noise)
        kl_weight = min(1.0, step / objective.warmup_steps)
        loss = objective_loss(terms, [kl_weight] * len(noise), objective)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        if ema is not None:
            ema.update_parameters(model)
        if (step + 1) % config.log_every == 0:
            log(step + 1, loss.item())
        if stop():
            return
