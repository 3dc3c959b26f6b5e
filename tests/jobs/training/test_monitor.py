"""What goes wrong in a training, really: rungs that die, steps that are not finite, memory that is full."""

import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_job import put, run, small_job

from jobs.checkpoints.format import read_meta
from jobs.checkpoints.manager import Checkpoints
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import Event, MetricPoint, TrainingWarning
from jobs.training.loop import train_model
from jobs.training.monitor import TrainingMonitor, memory_errors
from jobs.training.state import Training, TrainJob, Worker, prepare
from jobs.training.step import BAD, LOSS, NORM, train_step
from vlae.config import LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig
from vlae.models.base import ElboTerms

SIZE = {"latent_dims": (2, 3), "width": 4, "hidden_dims": 16}
NO_WARMUP = ObjectiveConfig(warmup_steps=0)
NO_STAGES = ProgressiveConfig()


def warned(
    objective: ObjectiveConfig,
    progressive: ProgressiveConfig,
    *seen: tuple[int, list[float]],
    idle: Sequence[float] = (0.0, 0.0, 0.0),
) -> list[Any]:
    """(step, rung) of each warning about points with the KL of each rung."""
    messages: list[Event] = []
    health = TrainingMonitor(TrainConfig(), objective, progressive, idle, messages.append)
    for step, rates in seen:
        health.check_collapse(step, rates)
    found = [message for message in messages if isinstance(message, TrainingWarning)]
    assert all(message.text.startswith(f"rung {message.key[5]} costs 0") for message in found)
    assert all(message.key == f"rung_{message.key[5]}_dies" for message in found)
    return [(message.step, int(message.key[5])) for message in found]


def test_a_rung_that_dies_is_warned_of_once() -> None:
    alive, dead, edge = [1.0, 2.0], [1.0, 0.009], [0.01, 0.01]
    points = [(10, alive), (20, dead), (30, dead), (40, []), (50, dead), (60, edge), (70, dead), (80, [0.0, 0.0])]
    assert warned(NO_WARMUP, NO_STAGES, *points) == [(20, 1), (70, 1), (80, 0)]


def test_a_rung_whose_kl_is_never_small_is_warned_of_above_what_it_costs_idle() -> None:
    points = [(10, [0.42, 0.9]), (20, [0.405, 0.9]), (30, [0.42, 0.6])]
    assert warned(NO_WARMUP, NO_STAGES, *points, idle=(0.4, 0.6)) == [(20, 0), (30, 1)]


@pytest.mark.parametrize(("kind", "over"), [("linear", 100), ("exponential", 461)])  # -ln(1 - .99) = 4.605
def test_not_during_the_warm_up_of_the_kl(kind: str, over: int) -> None:
    objective = ObjectiveConfig(warmup=kind, warmup_steps=100)
    points = [(step, [0.0, 1.0]) for step in range(1, 600)]
    ((step, rung),) = warned(objective, NO_STAGES, *points)
    assert rung == 0
    assert over - 1 <= step <= over


def test_not_a_rung_that_waits_or_fades_in() -> None:
    """Three stages of 100 steps; a new rung is whole after 20 of its own."""
    points = [(step, [0.0, 0.0, 1.0]) for step in range(0, 400, 5)]
    stages = ProgressiveConfig(stage_steps=100, fade_steps=20)
    assert warned(NO_WARMUP, stages, *points) == [(120, 1), (220, 0)]
    points = [(step, [float(step != 300), 1.0, 0.0]) for step in range(0, 400, 50)]
    assert warned(NO_WARMUP, stages, *points) == [(0, 2), (300, 0)]


def test_bad_steps_in_a_row_are_counted_across_points() -> None:
    health = TrainingMonitor(TrainConfig(max_nonfinite_steps=4), NO_WARMUP, NO_STAGES, [0.0], lambda message: None)
    health.check_finite(3, [True, True, True])
    health.check_finite(6, [False, True, True])
    health.check_finite(7, [True])
    said = r"up to step 9, 4 steps in a row \(train.max_nonfinite_steps\) had .* not finite.*: use a smaller train.learning_r"
    with pytest.raises(UserError, match=said):
        health.check_finite(9, [True, False])


def infinite_loss(value: float, when: Callable[[int], bool]) -> Callable[..., ElboTerms]:
    """A hook that makes the loss of some calls infinite, by a constant: all gradients stay finite."""
    calls = iter(range(10**6))

    def hook(module: object, inputs: object, terms: ElboTerms) -> ElboTerms:
        return terms._replace(reconstruction=terms.reconstruction + (value if when(next(calls)) else 0.0))

    return hook


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "place")


def state(training: Training) -> dict[str, torch.Tensor]:
    """All that a step changes, but for the average's count of updates and the batches that were seen."""
    found = {f"weights.{name}": tensor for name, tensor in training.model.state_dict().items()}
    found |= {f"average.{name}": tensor for name, tensor in training.ema.module.state_dict().items()}
    for number, entries in enumerate(training.optimizer.state.values()):
        found |= {f"moments.{number}.{name}": tensor for name, tensor in entries.items()}
    return {name: tensor.clone() for name, tensor in found.items() if not name.endswith("batches_tracked")}


@pytest.mark.parametrize("value", [-float("inf"), float("nan")])
@pytest.mark.parametrize(
    "how", [{}, {"gradient_accumulation_steps": 4}, {"deterministic": True}, {"ema_decay": 0.5, "precision": "bf16"}]
)
@pytest.mark.parametrize(
    "model",
    [
        LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE),
        VlaeConfig(likelihood="gaussian", likelihood_scale="optimal", **SIZE),
    ],
)
def test_a_skipped_step_changes_nothing(job: TrainJob, model: Any, how: dict[str, object], value: float) -> None:
    """Its loss is not finite, in one slice of its last pass; its gradient would be."""
    job = replace(job, model=model, train=job.train.model_copy(update=how))
    training, plain = prepare(job, Worker()), prepare(job, Worker())
    for one in (training, plain):
        train_step(one, one.loader.images(0))
    before, images = state(training), training.loader.images(1)
    passes = 4 if {"gradient_accumulation_steps", "deterministic"} & how.keys() else 1
    handle = training.module.register_forward_hook(infinite_loss(value, lambda call: call == passes - 1))
    values = train_step(training, images)
    handle.remove()
    assert values[BAD] == 1
    assert not torch.isfinite(values[LOSS])
    assert not torch.isfinite(values[NORM])
    after = state(training)
    assert {name for name in after if not torch.equal(before[name], after[name])} == set()
    assert any("running_mean" in name or "log_scale" in name for name in after)
    # The next step is as if this one had not been.
    for one in (training, plain):
        assert train_step(one, images)[BAD] == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in state(plain).items())
    found = state(training)
    assert {name for name, tensor in state(plain).items() if not torch.equal(found[name], tensor)} <= averages(found)


def averages(names: Iterable[str]) -> set[str]:
    """These follow their weights a little slower, as the count of updates takes in the one that was left out."""
    return {name for name in names if name.startswith("average")}


def test_too_many_of_them_end_the_training(job: TrainJob) -> None:
    """All from the sixth on; the checkpoint between has the weights of the last good step."""
    train = {"max_nonfinite_steps": 7, "log_every": 3, "checkpoint_every": 5, "steps": 10**5}
    job = replace(job, train=job.train.model_copy(update=train))

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        module.register_forward_hook(infinite_loss(float("nan"), lambda call: call >= 5))
        return module

    messages: list[Event] = []
    with pytest.raises(UserError, match=r"up to step 12, 7 steps in a row \(train.max_nonfinite_steps\) .* not finite"):
        train_model(job, Worker(wrap=wrap), messages.append)
    points = [message for message in messages if isinstance(message, MetricPoint) and len(message.metrics) > 1]
    assert [(point.step, point.metrics["train/skipped_steps"]) for point in points] == [(3, 0), (6, 1), (9, 4)]
    assert points[-1].metrics.keys() == {"train/skipped_steps", "train/images_per_second"}  # no mean of no step
    place = Checkpoints(job.checkpoints)
    sums = [read_meta(place.fetch(step, Path("/nowhere")))["weights_sha256"] for step in place.steps()]
    assert place.steps() == [5, 10]
    assert sums[0] == sums[1]
    # It begins again with a new count, as the reason may be mended.
    assert run(replace(job, train=job.train.model_copy(update={"steps": 14})))[0].step == 10


def test_a_likelihood_that_overflows(job: TrainJob) -> None:
    """Pixels are so many scales away from the decoder's that the square is no float32 any more."""
    train = job.train.model_copy(
        update={"max_nonfinite_steps": 4, "log_every": 2, "steps": 10**5, "checkpoint_every": 10**5}
    )
    model = VlaeConfig(likelihood="gaussian", likelihood_scale=1e-25, **SIZE)
    with pytest.raises(UserError, match="up to step 4, 4 steps in a row"):
        run(replace(job, model=model, train=train))
    assert Checkpoints(job.checkpoints).steps() == []


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """No more than so much is given to this process."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("size", [{"width": 512, "hidden_dims": 4096}, {"width": 256}])
def test_a_full_memory_is_one_clear_error(job: TrainJob, size: dict[str, int]) -> None:
    """There is no room for the weights, or for what they make of a batch."""
    train = job.train.model_copy(update={"batch_size": 208, "gradient_accumulation_steps": 2})
    large = replace(job, model=VlaeConfig(**{**SIZE, **size}), train=train)
    place = Checkpoints(job.checkpoints)
    put(place, prepare(large if size["width"] == 256 else job, Worker()), 1)
    said = "out of memory with train.batch_size=208 in 2 passes of each worker: use train.gradient_accumulation_steps=4, .* is kept$"
    with little_memory(150), pytest.raises(UserError, match=said) as error:
        run(large)
    assert "allocate memory" in str(error.value.__cause__)
    assert place.newest(Path("/nowhere")).name == "step-00000001"


@pytest.mark.parametrize("said", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`", "std::bad_alloc"])
def test_other_words_for_a_full_memory(said: str) -> None:
    with pytest.raises(UserError, match="out of memory"), memory_errors(TrainConfig()):
        raise RuntimeError(said)
    with pytest.raises(UserError, match="out of memory"), memory_errors(TrainConfig()):
        np.empty(2**60, np.uint8)


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shapes (2,) and (3,)"), ValueError("not enough memory"), UserError("out of memory")):
        with pytest.raises(type(error)) as found, memory_errors(TrainConfig()):
            raise error
        assert found.value is error
