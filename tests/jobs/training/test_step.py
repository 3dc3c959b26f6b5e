"""One step of a training: its loss, noise, learning rate and precision, and what it leaves unchanged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import SIZE, small_job
from helpers.worker_threads import run_threads, worker_training

from jobs.checkpoints.format import weights_sha256
from jobs.config import TrainConfig
from jobs.data.loader import BatchLoader
from jobs.training.metrics import StepMetrics
from jobs.training.state import Training, TrainJob, Worker, prepare
from jobs.training.step import learning_rate, microbatch_noise, train_step
from vlae.config import LvaeConfig, ObjectiveConfig, ProgressiveConfig
from vlae.models.vlae import Vlae


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "checkpoints")


def first_step(training: Training) -> StepMetrics:
    return train_step(training, training.loader.images(0))


def test_step_metrics_unpack_what_they_pack() -> None:
    values = torch.arange(12.0).view(2, 6)
    metrics = StepMetrics.unpack(values)
    assert metrics.kl.tolist() == [[4, 5], [10, 11]]
    assert torch.equal(StepMetrics.unpack(values[1]).pack(), values[1])
    assert StepMetrics.unpack(values[0]).to_dict()["train/kl_rung_1"] == 5


def test_mmd_is_in_the_loss_until_it_decays(job: TrainJob) -> None:
    objective = ObjectiveConfig(warmup_steps=0, mmd=(1000, 0), mmd_decay_steps=4)
    job = replace(job, objective=objective, train=job.train.model_copy(update={"learning_rate": 1e-12}))
    training = prepare(job, Worker())
    mmds = []
    for step in (0, 2, 4):
        training.step = step
        metrics = first_step(training)
        mmds.append((metrics.loss - metrics.reconstruction - metrics.kl.sum()).item())
    assert mmds[0] > mmds[1] > 1
    assert mmds[2] == pytest.approx(0, abs=1e-2)


def test_mmd_is_to_the_models_prior(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    job = replace(job, objective=ObjectiveConfig(warmup_steps=0, mmd=(1000,)))
    for shift in (0, 5):
        monkeypatch.setattr(Vlae, "prior", lambda _, noise, shift=shift: [rung + shift for rung in noise])
        losses.append(first_step(prepare(job, Worker())).loss)
    assert losses[1] > losses[0] + 100


def test_noise_belongs_to_the_microbatch(job: TrainJob) -> None:
    training = prepare(job, Worker())
    data, order = training.loader.data, training.loader.order
    workers = [BatchLoader(data, order, num_microbatches=4, rank=rank, world_size=2) for rank in range(2)]

    def draw(loader: BatchLoader, seed: int = 0, step: int = 3) -> list[torch.Tensor]:
        return microbatch_noise(training.model, loader.microbatches, 4, seed, step, torch.device("cpu"))

    whole = draw(training.loader)
    halves = [draw(loader) for loader in workers]
    for rung, noise in enumerate(whole):
        torch.testing.assert_close(noise, torch.cat([half[rung] for half in halves]), rtol=0, atol=0)
    assert not torch.equal(whole[0], draw(training.loader, step=4)[0])
    assert not torch.equal(whole[0], draw(training.loader, seed=1)[0])


def test_nonfinite_step_is_skipped_and_counted(job: TrainJob) -> None:
    training = prepare(job, Worker())
    before = weights_sha256(training.model)
    handle = next(training.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    assert first_step(training).nonfinite == 1
    assert weights_sha256(training.model) == before
    handle.remove()
    assert first_step(training).nonfinite == 0
    assert weights_sha256(training.model) != before


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = TrainConfig(steps=100, lr_warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 1e-3
    assert learning_rate(TrainConfig(steps=1, lr_warmup_steps=0), 0) > 0


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_low_precision_is_close_to_float32(job: TrainJob, precision: str) -> None:
    reference, rounded = (
        first_step(prepare(replace(job, train=job.train.model_copy(update={"precision": p})), Worker()))
        for p in ("fp32", precision)
    )
    torch.testing.assert_close(rounded.pack()[:2], reference.pack()[:2], rtol=0.01, atol=0)


def test_skipped_step_leaves_the_average(job: TrainJob) -> None:
    training = prepare(job, Worker())
    first_step(training)
    before = weights_sha256(training.ema.module)
    handle = next(training.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    assert first_step(training).nonfinite == 1
    handle.remove()
    assert weights_sha256(training.ema.module) == before


def test_inactive_rung_gets_no_reconstruction_gradient(job: TrainJob) -> None:
    """Until its stage the bottom rung gets gradients from its KL alone: none, if the KL has no weight."""
    inactive = ProgressiveConfig(stage_steps=10, inactive_kl_weight=0)
    training = prepare(replace(job, progressive=inactive), Worker())
    first_step(training)
    head = training.model.heads[0].linear.weight
    assert not head.grad.any()
    training.step = 10
    first_step(training)
    training.step = 5010  # halfway through the fade-in
    first_step(training)
    assert head.grad.any()


def test_constant_learning_rate() -> None:
    config = TrainConfig(steps=100, lr_warmup_steps=10, learning_rate=1.0, lr_schedule="constant")
    assert [learning_rate(config, step) for step in (4, 10, 50, 99)] == pytest.approx([0.5, 1, 1, 1])


def test_moving_average_has_the_gates_of_the_model(job: TrainJob) -> None:
    """Validation sees the rungs as training does, although the average is a model of its own."""
    training = prepare(replace(job, progressive=ProgressiveConfig(stage_steps=10, fade_steps=4)), Worker())
    for step in (0, 11):
        training.step = step
        first_step(training)
        assert torch.equal(training.ema.module.gates, training.model.gates)
        noise = training.model.noise(3, torch.Generator().manual_seed(0))
        moved = [noise[0] + 1, noise[1]]
        decoded = [model.decode(z) for model in (training.model, training.ema.module) for z in (noise, moved)]
        assert [torch.equal(*decoded[:2]), torch.equal(*decoded[2:])] == [step == 0] * 2


def set_train(job: TrainJob, **settings: object) -> TrainJob:
    return replace(job, train=job.train.model_copy(update={"max_grad_norm": 1e9, **settings}))


def gradients(training: Training) -> list[torch.Tensor]:
    return [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]


def batch_norm(job: TrainJob) -> TrainJob:
    return replace(job, model=LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE))


def test_accumulation_in_unequal_passes_is_one_pass(job: TrainJob) -> None:
    """Three passes over four microbatches."""
    whole, passes = prepare(set_train(job), Worker()), prepare(set_train(job, gradient_accumulation_steps=3), Worker())
    metrics = [first_step(training).pack() for training in (whole, passes)]
    torch.testing.assert_close(metrics[1], metrics[0])
    torch.testing.assert_close(gradients(passes), gradients(whole), rtol=1e-3, atol=1e-3)


def test_deterministic_step_is_the_mean_of_microbatches(job: TrainJob) -> None:
    """Gradient, metrics and running statistics, of batch norm too, from microbatches that are each a batch alone."""
    job = batch_norm(job)
    training = prepare(set_train(job, deterministic=True), Worker())
    metrics = first_step(training).pack()
    parts = [replace(worker_training(set_train(job), rank, 4), worker=Worker()) for rank in range(4)]
    part_metrics = [first_step(part).pack() for part in parts]  # each weighted by its fraction of the batch
    others = torch.arange(len(metrics)) != 2  # the norm of a mean is not the mean of the norms
    torch.testing.assert_close(metrics[others], sum(part_metrics)[others])
    summed = [torch.stack(each).sum(0) for each in zip(*map(gradients, parts), strict=True)]
    torch.testing.assert_close(gradients(training), summed, rtol=1e-3, atol=1e-3)
    means = [torch.stack(each).mean(0) for each in zip(*(part.running_stats for part in parts), strict=True)]
    torch.testing.assert_close(training.running_stats, means)


def test_workers_with_unequal_fractions_are_one_worker(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three workers have one of four microbatches, the third has two."""
    job = set_train(job)
    whole = prepare(job, Worker())
    expected = first_step(whole).pack()
    trainings = [worker_training(job, rank, 3) for rank in range(3)]
    metrics = run_threads(trainings, first_step, monkeypatch)
    torch.testing.assert_close(sum(each.pack() for each in metrics), expected)
    for training in trainings:
        torch.testing.assert_close(gradients(training), gradients(whole), rtol=1e-3, atol=1e-3)


def test_workers_average_running_statistics(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted by the fractions of the batch, from what each worker has alone."""
    job = batch_norm(job)
    alone, together = ([worker_training(job, rank, 3) for rank in range(3)] for _ in range(2))
    for training in alone:
        first_step(replace(training, worker=Worker()))
    run_threads(together, first_step, monkeypatch)
    for index, values in enumerate(zip(*(training.running_stats for training in alone), strict=True)):
        expected = 0.25 * values[0] + 0.25 * values[1] + 0.5 * values[2]
        for training in together:
            torch.testing.assert_close(training.running_stats[index], expected)


def test_max_grad_norm_scales_the_gradient(job: TrainJob) -> None:
    """The metric is the norm before."""
    norms, metrics = [], []
    for limit in (1e9, 0.5):
        training = prepare(set_train(job, max_grad_norm=limit), Worker())
        metrics.append(first_step(training).grad_norm.item())
        norms.append(torch.cat([gradient.flatten() for gradient in gradients(training)]).norm().item())
    assert norms == pytest.approx([metrics[0], 0.5], rel=1e-4)
    assert metrics[0] == metrics[1] > 1


def test_update_is_that_of_adamw(job: TrainJob) -> None:
    """Two updates by torch's plain implementation, from the same gradients."""
    training = prepare(set_train(job, adam_beta2=0.6, weight_decay=0.5, learning_rate=0.01), Worker())
    weights = [parameter.detach().clone() for parameter in training.model.parameters() if parameter.requires_grad]
    reference = torch.optim.AdamW(weights, betas=(0.9, 0.6), weight_decay=0.5, foreach=False)
    for step in range(2):
        training.step = step
        train_step(training, training.loader.images(step))
        reference.param_groups[0]["lr"] = 0.01 * (step + 1) / 2
        for weight, gradient in zip(weights, gradients(training), strict=True):
            weight.grad = gradient.clone()
        reference.step()
    trained = [parameter.detach() for parameter in training.model.parameters() if parameter.requires_grad]
    torch.testing.assert_close(trained, weights, rtol=1e-4, atol=1e-6)
