"""Exponential moving average of the weights: the model that is scored, where it is asked for."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vlae.models.base import HierarchicalModel


def average_weights(model: HierarchicalModel, decay: float, bad: Tensor) -> AveragedModel | None:
    """A copy of the model that follows its weights; None at a decay of 0.

    At update n the decay is min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten.
    Running statistics are copied, not averaged.

    Args:
        model: to follow.
        decay: of the average.
        bad: scalar tensor that is 1 while an update is to leave the average as it is, else 0; it is read at each.
    """
    if decay == 0:
        return None

    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))
        if bad.device.type == "cpu":
            torch._foreach_lerp_(averaged, current, (1 - kept) * (1 - bad.item()))
        else:  # as a tensor, for which nobody waits
            torch._foreach_lerp_(averaged, current, [(1 - kept) * (1 - bad)] * len(averaged))

    return AveragedModel(model, multi_avg_fn=average)  # type: ignore[arg-type]


def averaged_model(ema: AveragedModel | None, model: HierarchicalModel) -> HierarchicalModel:
    """The weights to use: the average if there is one."""
    if ema is None:
        return model
    module: nn.Module = ema.module
    assert isinstance(module, HierarchicalModel)  # noqa: S101  (it is a copy of one)
    return module
