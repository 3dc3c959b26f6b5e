"""One step of a training: its loss, noise, rate, precision, and what it leaves alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import small_job

from jobs.checkpoints.format import weights_sha256
from jobs.config import TrainConfig
from jobs.data.loader import BatchLoader
from jobs.training.state import Training, TrainJob, Worker, prepare
from jobs.training.step import BAD, LOSS, learning_rate, slice_noise, train_step
from vlae.config import ObjectiveConfig, ProgressiveConfig
from vlae.models.vlae import Vlae


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "checkpoints")


def step(training: Training) -> torch.Tensor:
    return train_step(training, training.loader.images(0))


def test_the_mmd_is_in_the_loss_until_its_weight_is_zero(job: TrainJob) -> None:
    objective = ObjectiveConfig(warmup_steps=0, mmd=(1000, 0), mmd_decay_steps=4)
    job = replace(job, objective=objective, train=job.train.model_copy(update={"learning_rate": 1e-12}))
    training = prepare(job, Worker())
    beside = []  # what the loss has beside reconstruction and KL
    for at in (0, 2, 4):
        training.step = at
        loss, reconstruction, _, _, *kl = step(training).tolist()
        beside.append(loss - reconstruction - sum(kl))
    assert beside[0] > beside[1] > 1
    assert beside[2] == pytest.approx(0, abs=1e-2)


def test_the_mmd_is_to_the_prior_of_the_model(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for shift in (0, 5):
        monkeypatch.setattr(Vlae, "prior", lambda _, noise, shift=shift: [part + shift for part in noise])
        seen.append(step(prepare(replace(job, objective=ObjectiveConfig(warmup_steps=0, mmd=(1000,))), Worker()))[LOSS])
    assert seen[1] > seen[0] + 100


def test_noise_belongs_to_the_slice(job: TrainJob) -> None:
    training = prepare(job, Worker())
    data, order = training.loader.data, training.loader.order
    halves = [BatchLoader(data, order, num_microbatches=4, rank=rank, world_size=2) for rank in range(2)]

    def draw(loader: BatchLoader, seed: int = 0, step: int = 3) -> list[torch.Tensor]:
        return slice_noise(training.model, loader.slices, 4, seed, step, torch.device("cpu"))

    whole = draw(training.loader)
    parts = [draw(loader) for loader in halves]
    for rung, noise in enumerate(whole):
        torch.testing.assert_close(noise, torch.cat([part[rung] for part in parts]), rtol=0, atol=0)
    assert not torch.equal(whole[0], draw(training.loader, step=4)[0])
    assert not torch.equal(whole[0], draw(training.loader, seed=1)[0])


def test_a_step_that_is_not_finite_is_skipped_and_counted(job: TrainJob) -> None:
    training = prepare(job, Worker())
    before = weights_sha256(training.model)
    handle = next(training.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    images = training.loader.images(0)
    assert train_step(training, images)[BAD] == 1
    assert weights_sha256(training.model) == before
    handle.remove()
    assert train_step(training, images)[BAD] == 0
    assert weights_sha256(training.model) != before


def test_learning_rate_rises_and_falls_to_zero() -> None:
    config = TrainConfig(steps=100, lr_warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 1e-3
    assert learning_rate(TrainConfig(steps=1, lr_warmup_steps=0), 0) > 0


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_low_precision_stays_close(job: TrainJob, precision: str) -> None:
    exact, rough = (
        prepare(replace(job, train=job.train.model_copy(update={"precision": p})), Worker())
        for p in ("fp32", precision)
    )
    torch.testing.assert_close(step(rough)[:2], step(exact)[:2], rtol=0.01, atol=0)


def test_a_skipped_step_leaves_the_average(job: TrainJob) -> None:
    training = prepare(job, Worker())
    images = training.loader.images(0)
    train_step(training, images)
    before = weights_sha256(training.ema.module)
    handle = next(training.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    assert train_step(training, images)[BAD] == 1
    handle.remove()
    assert weights_sha256(training.ema.module) == before


def test_rungs_that_wait_do_not_touch_the_image(job: TrainJob) -> None:
    """Until its stage the bottom rung gets gradients from its KL alone: with no weight on it, none."""
    waiting = ProgressiveConfig(stage_steps=10, inactive_kl_weight=0)
    training = prepare(replace(job, progressive=waiting), Worker())
    step(training)
    head = training.model.heads[0].linear.weight
    assert not head.grad.any()
    training.step = 10
    step(training)
    training.step = 5010  # half of it is faded in
    step(training)
    assert head.grad.any()


def test_constant_learning_rate() -> None:
    config = TrainConfig(steps=100, lr_warmup_steps=10, learning_rate=1.0, lr_schedule="constant")
    assert [learning_rate(config, step) for step in (4, 10, 50, 99)] == pytest.approx([0.5, 1, 1, 1])


def test_validation_sees_the_rungs_as_training_does(job: TrainJob) -> None:
    """The moving average is a model of its own: it must fade with the one that is trained."""
    training = prepare(replace(job, progressive=ProgressiveConfig(stage_steps=10, fade_steps=4)), Worker())
    for reached in (0, 11):
        training.step = reached
        step(training)
        assert torch.equal(training.ema.module.fade, training.model.fade)
        noise = training.model.noise(3, torch.Generator().manual_seed(0))
        moved = [noise[0] + 1, noise[1]]
        written = [model.decode(z) for model in (training.model, training.ema.module) for z in (noise, moved)]
        assert [torch.equal(*written[:2]), torch.equal(*written[2:])] == [reached == 0] * 2
