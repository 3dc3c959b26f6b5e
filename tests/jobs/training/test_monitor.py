"""Collapsed rungs, nonfinite steps and full memory, provoked in real trainings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.limited_memory import error_with_limited_memory
from helpers.small_job import SIZE, publish_checkpoint, run, small_job

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import Event, MetricPoint, TrainingWarning
from jobs.training.loop import train_model
from jobs.training.monitor import TrainingMonitor, memory_errors
from jobs.training.state import Training, TrainJob, Worker, prepare
from jobs.training.step import train_step
from vlae.config import LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig
from vlae.models.base import ElboTerms

NO_WARMUP = ObjectiveConfig(warmup_steps=0)
NO_STAGES = ProgressiveConfig()


def collapse_warnings(
    objective: ObjectiveConfig,
    progressive: ProgressiveConfig,
    *points: tuple[int, list[float]],
    collapsed_kl: Sequence[float] = (0.0, 0.0, 0.0),
) -> list[tuple[int, int]]:
    """Return (step, rung) of each warning about points with the KL of each rung."""
    events: list[Event] = []
    monitor = TrainingMonitor(TrainConfig(), objective, progressive, collapsed_kl, events.append)
    for step, kl in points:
        monitor.check_collapse(step, kl)
    warnings = [event for event in events if isinstance(event, TrainingWarning)]
    assert all(warning.text.startswith(f"rung {warning.key[5]} ") for warning in warnings)
    assert all(warning.key == f"rung_{warning.key[5]}_collapsed" for warning in warnings)
    return [(warning.step, int(warning.key[5])) for warning in warnings]


def test_check_collapse_warns_once_per_collapse() -> None:
    active, collapsed, edge = [1.0, 2.0], [1.0, 0.009], [0.01, 0.01]
    points = [(10, active), (20, collapsed), (30, collapsed), (50, collapsed), (60, edge), (70, collapsed)]
    assert collapse_warnings(NO_WARMUP, NO_STAGES, *points, (80, [0.0, 0.0])) == [(20, 1), (70, 1), (80, 0)]


def test_check_collapse_starts_at_collapsed_kl() -> None:
    """A rung's KL without information need not be zero."""
    points = [(10, [0.42, 0.9]), (20, [0.405, 0.9]), (30, [0.42, 0.6])]
    assert collapse_warnings(NO_WARMUP, NO_STAGES, *points, collapsed_kl=(0.4, 0.6)) == [(20, 0), (30, 1)]


@pytest.mark.parametrize(("kind", "end"), [("linear", 100), ("exponential", 461)])  # -ln(1 - .99) = 4.605
def test_check_collapse_waits_for_the_warmup(kind: str, end: int) -> None:
    objective = ObjectiveConfig(warmup=kind, warmup_steps=100)
    points = [(step, [0.0, 1.0]) for step in range(1, 600)]
    ((step, rung),) = collapse_warnings(objective, NO_STAGES, *points)
    assert rung == 0
    assert end - 1 <= step <= end


def test_check_collapse_skips_rungs_that_fade_in() -> None:
    """Three stages of 100 steps; a new rung is complete after 20 of its own."""
    points = [(step, [0.0, 0.0, 1.0]) for step in range(0, 400, 5)]
    stages = ProgressiveConfig(stage_steps=100, fade_steps=20)
    assert collapse_warnings(NO_WARMUP, stages, *points) == [(120, 1), (220, 0)]
    points = [(step, [float(step != 300), 1.0, 0.0]) for step in range(0, 400, 50)]
    assert collapse_warnings(NO_WARMUP, stages, *points) == [(0, 2), (300, 0)]


def test_check_finite_counts_across_points() -> None:
    config = TrainConfig(max_nonfinite_steps=4)
    monitor = TrainingMonitor(config, NO_WARMUP, NO_STAGES, [0.0], lambda event: None)
    monitor.check_finite(3, [True, True, True])
    monitor.check_finite(6, [False, True, True])
    monitor.check_finite(7, [True])
    with pytest.raises(UserError, match=r"train\.max_nonfinite_steps: .*step 9, 4 steps"):
        monitor.check_finite(9, [True, False])


def nonfinite_loss(value: float, when: Callable[[int], bool]) -> Callable[..., ElboTerms]:
    """Return a hook that adds a nonfinite constant to the loss of some calls: all gradients stay finite."""
    calls = iter(range(10**6))

    def hook(module: object, inputs: object, terms: ElboTerms) -> ElboTerms:
        return terms._replace(reconstruction=terms.reconstruction + (value if when(next(calls)) else 0.0))

    return hook


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "checkpoints")


def state(training: Training) -> dict[str, torch.Tensor]:
    """Return all that a step changes, except for the update count of the average and the batches seen."""
    tensors = {f"weights.{name}": tensor for name, tensor in training.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in training.ema.module.state_dict().items()}
    for index, entries in enumerate(training.optimizer.state.values()):
        tensors |= {f"moments.{index}.{name}": tensor for name, tensor in entries.items()}
    return {name: tensor.clone() for name, tensor in tensors.items() if not name.endswith("batches_tracked")}


@pytest.mark.parametrize("value", [-float("inf"), float("nan")])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 4}, {"deterministic": True}, {"ema_decay": 0.5, "precision": "bf16"}],
)
@pytest.mark.parametrize(
    "model",
    [
        LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE),
        VlaeConfig(likelihood="gaussian", likelihood_scale="optimal", **SIZE),
    ],
)
def test_skipped_step_changes_nothing(job: TrainJob, model: Any, settings: dict[str, object], value: float) -> None:
    """The loss is not finite in one microbatch of the last pass; the gradient would be."""
    job = replace(job, model=model, train=job.train.model_copy(update=settings))
    training, reference = prepare(job, Worker()), prepare(job, Worker())
    for each in (training, reference):
        train_step(each, each.loader.images(0))
    before, images = state(training), training.loader.images(1)
    passes = 4 if {"gradient_accumulation_steps", "deterministic"} & settings.keys() else 1
    handle = training.module.register_forward_hook(nonfinite_loss(value, lambda call: call == passes - 1))
    metrics = train_step(training, images)
    handle.remove()
    assert metrics.nonfinite == 1
    assert not torch.isfinite(metrics.loss)
    assert not torch.isfinite(metrics.grad_norm)
    after = state(training)
    assert {name for name in after if not torch.equal(before[name], after[name])} == set()
    assert any("running_mean" in name or "log_scale" in name for name in after)
    # The next step is the same as without the skipped one.
    for each in (training, reference):
        assert train_step(each, images).nonfinite == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in state(reference).items())
    after = state(training)
    changed = {name for name, tensor in state(reference).items() if not torch.equal(after[name], tensor)}
    assert changed <= averages(after)


def averages(names: Iterable[str]) -> set[str]:
    """Return the averaged tensors, whose decay depends on the update count, which includes the skipped update."""
    return {name for name in names if name.startswith("average")}


def test_too_many_nonfinite_steps_end_training(job: TrainJob) -> None:
    """All from the sixth on; the checkpoint after them has the weights of the last finite step."""
    settings = {"max_nonfinite_steps": 7, "log_every": 3, "checkpoint_every": 5, "steps": 10**5}
    job = replace(job, train=job.train.model_copy(update=settings))

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        module.register_forward_hook(nonfinite_loss(float("nan"), lambda call: call >= 5))
        return module

    events: list[Event] = []
    with pytest.raises(UserError, match=r"train\.max_nonfinite_steps: .*step 12, 7 steps"):
        train_model(job, Worker(wrap=wrap), events.append)
    points = [event for event in events if isinstance(event, MetricPoint) and len(event.metrics) > 1]
    assert [(point.step, point.metrics["train/skipped_steps"]) for point in points] == [(3, 0), (6, 1), (9, 4)]
    assert points[-1].metrics.keys() == {"train/skipped_steps", "train/images_per_second"}  # no mean over no steps
    manager = CheckpointManager(job.checkpoints)
    hashes = [read_meta(manager.load(step, Path("/nowhere")))["weights_sha256"] for step in manager.steps()]
    assert manager.steps() == [5, 10]
    assert hashes[0] == hashes[1]
    # A later command counts anew, because the user may have fixed the cause.
    assert run(replace(job, train=job.train.model_copy(update={"steps": 14})))[0].step == 10


def test_overflowing_likelihood_ends_training(job: TrainJob) -> None:
    """The pixels are so many scales away from the decoder's that the square overflows float32."""
    settings = {"max_nonfinite_steps": 4, "log_every": 2, "steps": 10**5, "checkpoint_every": 10**5}
    model = VlaeConfig(likelihood="gaussian", likelihood_scale=1e-25, **SIZE)
    with pytest.raises(UserError, match=r"train\.max_nonfinite_steps: .*step 4, 4 steps"):
        run(replace(job, model=model, train=job.train.model_copy(update=settings)))
    assert CheckpointManager(job.checkpoints).steps() == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [{"width": 512, "hidden_dims": 4096}, {"width": 256}])
def test_full_memory_is_one_clear_error(job: TrainJob, size: dict[str, int]) -> None:
    """The memory holds neither the weights, nor the activations of a batch."""
    train = job.train.model_copy(update={"batch_size": 208, "gradient_accumulation_steps": 2})
    large = replace(job, model=VlaeConfig(**{**SIZE, **size}), train=train)
    manager = CheckpointManager(job.checkpoints)
    publish_checkpoint(manager, prepare(large if size["width"] == 256 else job, Worker()), 1)
    kind, message, cause = error_with_limited_memory(150, run, large)
    assert kind == "TrainingError"
    assert message.startswith("train.batch_size=208: ")
    assert "train.gradient_accumulation_steps=4" in message
    assert "allocate memory" in cause
    assert manager.latest(Path("/nowhere")).name == "step-00000001"


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`", "std::bad_alloc"])
def test_memory_errors_cover_other_messages(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size"), memory_errors(TrainConfig()):
        raise RuntimeError(text)
    with pytest.raises(UserError, match=r"train\.batch_size"), memory_errors(TrainConfig()):
        np.empty(2**60, np.uint8)


def test_memory_errors_keep_other_errors() -> None:
    for error in (RuntimeError("shapes (2,) and (3,)"), ValueError("not enough memory"), UserError("out of memory")):
        with pytest.raises(type(error)) as raised, memory_errors(TrainConfig()):
            raise error
        assert raised.value is error
