"""Tables of the warm-up, of weights per rung, and of the stages of progressive training."""

import math

import pytest

from vlae.config import ObjectiveConfig, ProgressiveConfig
from vlae.schedule import mmd_weights, per_rung, rung_schedule, warmup

CONSTANT = ProgressiveConfig()


def test_warmup_rises_from_0_to_1() -> None:
    linear = ObjectiveConfig(warmup_steps=10)
    assert [warmup(linear, step) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    reference = ObjectiveConfig(warmup="exponential", warmup_steps=2000)
    assert [warmup(reference, step) for step in (0, 2000, 10_000)] == pytest.approx(
        [0, 1 - math.exp(-1), 1 - math.exp(-5)]
    )
    for kind in ("linear", "exponential"):
        assert warmup(ObjectiveConfig(warmup=kind, warmup_steps=0), 0) == 1


def test_per_rung_repeats_a_single_value() -> None:
    assert per_rung([2.0], 3) == [2, 2, 2]
    assert per_rung([1.0, 2.0, 3.0], 3) == [1, 2, 3]
    with pytest.raises(ValueError, match="3 rungs"):
        per_rung([1.0, 2.0], 3)


def test_mmd_weights_fall_to_zero_or_are_constant() -> None:
    falling = ObjectiveConfig(mmd=(8, 0, 4), mmd_decay_steps=8)
    assert [mmd_weights(falling, step, 3) for step in (0, 2, 8)] == [[8, 0, 4], [6, 0, 3], [0, 0, 0]]
    assert mmd_weights(ObjectiveConfig(mmd=9), 99, 2) == [9, 9]
    assert not any(mmd_weights(ObjectiveConfig(mmd_decay_steps=8), 0, 2))


def test_kl_weights_rise_with_the_warmup() -> None:
    config = ObjectiveConfig(beta=(4, 1, 0.5), warmup_steps=10)
    assert rung_schedule(config, CONSTANT, 5, 3).kl_weights == [2, 0.5, 0.25]
    assert rung_schedule(config, CONSTANT, 50, 3).kl_weights == [4, 1, 0.5]
    assert rung_schedule(config, CONSTANT, 50, 3).output_gates == [1, 1, 1]


@pytest.mark.parametrize(
    ("step", "kl_weights", "input_gates", "output_gates"),
    [
        # Stage 1: the top rung alone, with open gates from the start.
        (0, [0.5, 0.5, 8], [1, 1, 1], [0, 0, 1]),
        (99, [0.5, 0.5, 8], [1, 1, 1], [0, 0, 1]),
        # Stage 2: the gates of the middle rung open over 40 steps.
        (100, [0.5, 8, 8], [1, 0, 1], [0, 0, 1]),
        (110, [0.5, 8, 8], [1, 0.25, 1], [0, 0.25, 1]),
        (150, [0.5, 8, 8], [1, 1, 1], [0, 1, 1]),
        # Stage 3, the last: all rungs, to the end.
        (210, [8, 8, 8], [0.25, 1, 1], [0.25, 1, 1]),
        (5000, [8, 8, 8], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_rung_schedule_adds_rungs_from_the_top(
    step: int, kl_weights: list[float], input_gates: list[float], output_gates: list[float]
) -> None:
    objective = ObjectiveConfig(beta=8, warmup_steps=0)
    state = rung_schedule(objective, ProgressiveConfig(stage_steps=100, fade_steps=40, inactive_kl_weight=0.5), step, 3)
    assert (state.kl_weights, state.input_gates, state.output_gates) == (kl_weights, input_gates, output_gates)


def test_rung_schedule_from_the_bottom_has_two_stages() -> None:
    progressive = ProgressiveConfig(stage_steps=100, fade_steps=40, inactive_kl_weight=0.5, direction="bottom")
    objective = ObjectiveConfig(beta=8, warmup_steps=0)
    states = [rung_schedule(objective, progressive, step, 3) for step in (99, 110, 150, 5000)]
    assert [state.kl_weights for state in states] == [[8, 0.5, 0.5], [8, 8, 8], [8, 8, 8], [8, 8, 8]]
    assert [state.input_gates for state in states] == [[1, 1, 1], [1, 0.25, 0.25], [1, 1, 1], [1, 1, 1]]
    assert [state.output_gates for state in states] == [[1, 0, 0], [1, 0.25, 0.25], [1, 1, 1], [1, 1, 1]]
    assert rung_schedule(objective, progressive, 150, 1).output_gates == [1]


def test_rung_schedule_without_fading_opens_gates_at_once() -> None:
    state = rung_schedule(ObjectiveConfig(), ProgressiveConfig(stage_steps=100, fade_steps=0), 100, 2)
    assert (state.input_gates, state.output_gates) == ([1, 1], [1, 1])


def test_kl_weights_of_inactive_rungs_rise_with_the_warmup() -> None:
    progressive = ProgressiveConfig(stage_steps=100, inactive_kl_weight=0.5)
    assert rung_schedule(ObjectiveConfig(beta=8, warmup_steps=10), progressive, 5, 3).kl_weights == [0.25, 0.25, 4]
