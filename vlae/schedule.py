"""Schedules of the objective: weights of KL and MMD, and the gates of a ladder's rungs, as functions of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from vlae.config import ObjectiveConfig, ProgressiveConfig


def warmup(config: ObjectiveConfig, step: int) -> float:
    """Return the fraction in [0, 1] of its final weight that the KL has after `step` updates; 1 without a warm-up.

    `linear` is min(1, step / warmup_steps), `exponential` is 1 - exp(-step / warmup_steps) as in the released code of
    the VLAE.

    Example:
        >>> warmup(ObjectiveConfig(warmup_steps=500), step=125)
        0.25
    """
    if config.warmup_steps == 0:
        return 1.0
    if config.warmup == "exponential":
        return -math.expm1(-step / config.warmup_steps)
    return min(1.0, step / config.warmup_steps)


def per_rung(values: Sequence[float], rungs: int) -> list[float]:
    """Return one value for each rung, from one value for all rungs or one per rung.

    Raises:
        ValueError: There is another number of values.
    """
    if len(values) not in (1, rungs):
        raise ValueError(f"{len(values)} values for {rungs} rungs. Pass one value, or one per rung.")
    return list(values) * (rungs // len(values))


def mmd_weights(config: ObjectiveConfig, step: int, rungs: int) -> list[float]:
    """Return the weight of each rung's MMD after `step` updates, bottom first: constant, or falling linearly to zero.

    The MMD keeps the dimensions of a rung from encoding the same factor. At the constant weight of the InfoVAE it also
    costs information, so the weight can fall to zero in `mmd_decay_steps`.

    Raises:
        ValueError: There is neither one weight nor one per rung.
    """
    fraction = max(0.0, 1 - step / config.mmd_decay_steps) if config.mmd_decay_steps else 1.0
    return [weight * fraction for weight in per_rung(config.mmd, rungs)]


@dataclass(frozen=True)
class RungSchedule:
    """KL weights and gates of all rungs at one step, bottom first.

    Attributes:
        kl_weights: Weight of each rung's KL.
        input_gates: Factor of each rung's trunk features, in [0, 1].
        output_gates: Factor of each rung's contribution to the decoder, in [0, 1].
    """

    kl_weights: list[float]
    input_gates: list[float]
    output_gates: list[float]


def rung_schedule(objective: ObjectiveConfig, progressive: ProgressiveConfig, step: int, rungs: int) -> RungSchedule:
    """Return the KL weights and gates of all rungs at a step.

    In progressive training, stage s trains the top s rungs. A rung that is not added yet contributes nothing to the
    decoder, and its KL has the weight `inactive_kl_weight`. Both gates of the newest rung are
    min(1, steps in the stage / fade_steps). From the bottom there are two stages, the bottom rung alone and then all
    rungs, because a rung added late to a trained decoder often collapses.

    Args:
        objective: Weights and warm-up of the KL.
        progressive: Stages; `stage_steps=0` is ordinary training with all gates open.
        step: Number of updates so far.
        rungs: Number of rungs L.

    Raises:
        ValueError: There are neither 1 nor L values of `objective.beta`.

    References:
        Li, Murkute, Gyawali, Wang: "Progressive Learning and Disentanglement of Hierarchical Representations", ICLR
        2020, section 3.2, arXiv:2002.10549.

    Example:
        >>> progressive = ProgressiveConfig(stage_steps=100, fade_steps=40)
        >>> rung_schedule(ObjectiveConfig(), progressive, step=110, rungs=3).output_gates
        [0.0, 0.25, 1.0]
    """
    rise = warmup(objective, step)
    kl_weights = [beta * rise for beta in per_rung(objective.beta, rungs)]
    input_gates, output_gates = [1.0] * rungs, [1.0] * rungs
    if progressive.stage_steps:
        stages = added_rungs(progressive, rungs)
        stage = min(step // progressive.stage_steps, len(stages) - 1)
        for rung in chain(*stages[stage + 1 :]):
            kl_weights[rung], output_gates[rung] = progressive.inactive_kl_weight * rise, 0.0
        if stage and progressive.fade_steps:
            gate = min(1.0, (step - stage * progressive.stage_steps) / progressive.fade_steps)
            for rung in stages[stage]:
                input_gates[rung] = output_gates[rung] = gate
    return RungSchedule(kl_weights, input_gates, output_gates)


def added_rungs(progressive: ProgressiveConfig, rungs: int) -> list[list[int]]:
    """Return the indices of the rungs that each stage of progressive training adds, first stage first.

    Example:
        >>> added_rungs(ProgressiveConfig(), 3), added_rungs(ProgressiveConfig(direction="bottom"), 3)
        ([[2], [1], [0]], [[0], [1, 2]])
    """
    if progressive.direction == "bottom":
        return [[0], list(range(1, rungs))] if rungs > 1 else [[0]]
    return [[rung] for rung in reversed(range(rungs))]
