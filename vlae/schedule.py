"""What changes while a model is trained: the KL's weight, and which rungs of a ladder take part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from vlae.config import ObjectiveConfig, ProgressiveConfig


def warmup(config: ObjectiveConfig, step: int) -> float:
    """The share of its final weight that the KL has at `step`, in [0, 1].

    `linear` reaches 1 after `warmup_steps`; `exponential` is 1 - exp(-step / warmup_steps), as in the
    reference code of the VLAE.
    """
    if config.warmup_steps == 0:
        return 1.0
    if config.warmup == "exponential":
        return -math.expm1(-step / config.warmup_steps)
    return min(1.0, step / config.warmup_steps)


def per_rung(values: Sequence[float], rungs: int) -> list[float]:
    """One value for each rung, from that many or from a single one.

    Raises:
        ValueError: neither.
    """
    if len(values) not in (1, rungs):
        raise ValueError(f"{len(values)} values for {rungs} rungs")
    return list(values) * (rungs // len(values))


def mmd_weights(config: ObjectiveConfig, step: int, rungs: int) -> list[float]:
    """The weight of each rung's MMD at `step`, bottom first: level, or falling linearly to zero in `mmd_decay_steps`.

    In the InfoVAE (Zhao, Song, Ermon 2019) it stays. It keeps the dimensions of a rung from encoding the same thing,
    but for good it costs information (docs/tuning.md).

    Raises:
        ValueError: weights for another number of rungs.
    """
    share = max(0.0, 1 - step / config.mmd_decay_steps) if config.mmd_decay_steps else 1.0
    return [weight * share for weight in per_rung(config.mmd, rungs)]


@dataclass(frozen=True)
class RungSchedule:
    """How far each rung takes part, bottom first."""

    kl_weights: list[float]
    reads: list[float]  # factors of what the rungs read
    writes: list[float]  # factors of what they lay into the decoder


def rung_schedule(objective: ObjectiveConfig, progressive: ProgressiveConfig, step: int, rungs: int) -> RungSchedule:
    """The state at `step` of a model with so many rungs.

    Progressive training (Li et al. 2020, section 3.2): stage s has the top s rungs. A rung that is not added
    yet writes nothing, and its KL has the weight `inactive_kl_weight`; what a new one reads and writes is
    scaled by min(1, steps in the stage / fade_steps). From the bottom there are two stages, the bottom rung alone
    and all of them: a rung that comes late finds a decoder that can do without it, and dies.

    Raises:
        ValueError: weights for another number of rungs.
    """
    rise = warmup(objective, step)
    weights = [beta * rise for beta in per_rung(objective.beta, rungs)]
    reads, writes = [1.0] * rungs, [1.0] * rungs
    if progressive.stage_steps == 0:
        return RungSchedule(weights, reads, writes)
    stages = added_rungs(progressive, rungs)
    stage = min(step // progressive.stage_steps, len(stages) - 1)
    for rung in chain(*stages[stage + 1 :]):
        weights[rung], writes[rung] = progressive.inactive_kl_weight * rise, 0.0
    if stage and progressive.fade_steps:
        fade = min(1.0, (step - stage * progressive.stage_steps) / progressive.fade_steps)
        for rung in stages[stage]:
            reads[rung] = writes[rung] = fade
    return RungSchedule(weights, reads, writes)


def added_rungs(progressive: ProgressiveConfig, rungs: int) -> list[list[int]]:
    """The rungs that each stage of progressive training adds, the first stage first."""
    if progressive.direction == "bottom":
        return [[0], list(range(1, rungs))] if rungs > 1 else [[0]]
    return [[rung] for rung in reversed(range(rungs))]
