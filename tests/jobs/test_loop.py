"""The loop without Ray: it learns, resumes to the bit, and a run depends on nothing but its settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import local
from safetensors.torch import load_file

from jobs.checkpoint import load_model, read_meta, weights_sha256
from jobs.checkpoints import Checkpoints
from jobs.config import TrainConfig
from jobs.data.loader import BatchLoader
from jobs.errors import UserError
from jobs.loop import train_model
from jobs.messages import Committed, Message, Point, Started, Warned
from jobs.step import BAD, LOSS, learning_rate, slice_noise, train_step
from jobs.training import Training, TrainJob, Worker, prepare
from vlae.config import AnyModelConfig, HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig
from vlae.models.vlae import Vlae

CONFIG = TrainConfig(
    steps=12,
    batch_size=16,
    num_slices=4,
    learning_rate=3e-3,
    lr_warmup_steps=2,
    checkpoint_every=5,
    log_every=2,
    precision="fp32",
)


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return TrainJob(
        model=VlaeConfig(latent_dims=(2, 3), width=4, hidden=16),
        objective=ObjectiveConfig(warmup_steps=5),
        progressive=ProgressiveConfig(),
        train=CONFIG,
        seed=0,
        data=local(digit_dataset),
        checkpoints=str(tmp_path / "checkpoints"),
    )


def run(job: TrainJob) -> tuple[Path, list[Message]]:
    messages: list[Message] = []
    step = train_model(job, Worker(), messages.append)
    return Checkpoints(job.checkpoints).fetch(step, Path("/nowhere")), messages


def step(training: Training) -> torch.Tensor:
    return train_step(training, training.loader.images(0))


def steps_of(messages: list[Message]) -> list[int]:
    return [m.step for m in messages if isinstance(m, Point) and "train/loss" in m.metrics]


def test_curve_and_commits(job: TrainJob) -> None:
    checkpoint, messages = run(job)
    assert checkpoint.name == "step-00000012"
    assert steps_of(messages) == [2, 4, 6, 8, 10, 12]
    assert [m.step for m in messages if isinstance(m, Committed)] == [5, 10, 12]
    assert isinstance(messages[0], Started)
    last = [m for m in messages if isinstance(m, Point)][-2].metrics
    assert last["train/kl"] == pytest.approx(last["train/kl_rung_0"] + last["train/kl_rung_1"])
    assert last["train/loss"] == pytest.approx(last["train/reconstruction"] + last["train/kl"], rel=1e-6)
    scores = {m.step: m.metrics["validation/elbo"] for m in messages if isinstance(m, Point) and len(m.metrics) == 1}
    assert set(scores) == {5, 10, 12}
    assert set(Checkpoints(job.checkpoints).steps()) == {10, 12, max(scores, key=lambda step: scores[step])}


def test_it_learns(job: TrainJob) -> None:
    job = replace(job, train=CONFIG.model_copy(update={"steps": 60, "log_every": 10}))
    _, messages = run(job)
    losses = [m.metrics["train/loss"] for m in messages if isinstance(m, Point) and "train/loss" in m.metrics]
    assert losses[-1] < losses[0] - 100


def test_the_mmd_is_in_the_loss_until_its_weight_is_zero(job: TrainJob) -> None:
    objective = ObjectiveConfig(warmup_steps=0, mmd=(1000, 0), mmd_steps=4)
    job = replace(job, objective=objective, train=CONFIG.model_copy(update={"learning_rate": 1e-12}))
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


SIZE = {"latent_dims": (2, 3), "width": 4, "hidden": 16}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (VlaeConfig(**SIZE), {}),
        (HvaeConfig(**SIZE), {"train": CONFIG.model_copy(update={"ema_decay": 0})}),
        (LvaeConfig(norm="batch", norm_heads=True, **SIZE), {}),
        (
            VlaeConfig(likelihood="gaussian", scale="optimal", prior_power=4, **SIZE),
            {
                "objective": ObjectiveConfig(beta=(2, 1), total_correlation=1, mmd=(10, 0), mmd_steps=6, free_bits=0.1),
                "progressive": ProgressiveConfig(stage_steps=4, fade_steps=3),
            },
        ),
    ],
)
def test_a_resumed_run_has_the_same_weights(
    job: TrainJob, tmp_path: Path, model: AnyModelConfig, more: dict[str, object]
) -> None:
    job = replace(job, model=model, **more)
    whole, messages = run(job)
    part = replace(job, checkpoints=str(tmp_path / "part"))

    class KillError(Exception):
        pass

    def die_after_seven(message: Message) -> None:
        if isinstance(message, Point) and message.step == 8:
            raise KillError

    with pytest.raises(KillError):
        train_model(part, Worker(), die_after_seven)
    resumed, later = run(part)
    assert read_meta(resumed)["weights_sha256"] == read_meta(whole)["weights_sha256"]
    assert read_meta(resumed)["files"]["optimizer.safetensors"] == read_meta(whole)["files"]["optimizer.safetensors"]
    started = later[0]
    assert isinstance(started, Started)
    assert started.step == 5
    # The curve goes on without a gap and without a repeated step.
    kept = [point.step for point in started.history if "train/loss" in point.metrics]
    assert kept + steps_of(later) == steps_of(messages)


def test_a_damaged_checkpoint_is_passed_over(job: TrainJob) -> None:
    checkpoint, _ = run(job)
    expected = read_meta(checkpoint)["weights_sha256"]
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="is damaged"):
        load_model(checkpoint)
    assert Checkpoints(job.checkpoints).newest(Path("/nowhere")) == checkpoint.with_name("step-00000010")
    again, messages = run(job)
    assert again == checkpoint
    assert [m.text for m in messages if isinstance(m, Warned)] == [
        "the checkpoint of step 12 is damaged and passed over"
    ]
    assert steps_of(messages) == [12]
    assert read_meta(again)["weights_sha256"] == expected


def test_a_checkpoint_rebuilds_its_model(job: TrainJob) -> None:
    checkpoint, _ = run(job)
    model = load_model(checkpoint)
    assert weights_sha256(model) == read_meta(checkpoint)["weights_sha256"]
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
    meta = json.loads((checkpoint / "checkpoint.json").read_text())
    (checkpoint / "checkpoint.json").write_text(json.dumps({**meta, "format": 0}))
    with pytest.raises(UserError, match="has format 0"):
        load_model(checkpoint)


def test_noise_belongs_to_the_slice(job: TrainJob) -> None:
    training = prepare(job, Worker())
    data, order = training.loader.data, training.loader.order
    halves = [BatchLoader(data, order, num_slices=4, rank=rank, world_size=2) for rank in range(2)]

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
        prepare(replace(job, train=CONFIG.model_copy(update={"precision": p})), Worker()) for p in ("fp32", precision)
    )
    torch.testing.assert_close(step(rough)[:2], step(exact)[:2], rtol=0.01, atol=0)


def test_the_checkpoints_model_is_the_moving_average(job: TrainJob) -> None:
    """By numpy, from the weights after every update; the decay of update n is min(decay, (1 + n) / (10 + n))."""
    job = replace(job, train=CONFIG.model_copy(update={"ema_decay": 0.3, "steps": 6, "checkpoint_every": 1}))
    job = replace(job, train=job.train.model_copy(update={"keep_checkpoints": 10}))
    checkpoint, _ = run(job)
    folders = sorted(Path(job.checkpoints).iterdir())
    trained = [load_file(folder / "trained.safetensors") for folder in folders]
    name = next(key for key in trained[0] if key.endswith("weight"))
    average = trained[0][name].double()
    for updates, weights in enumerate(trained[1:], start=1):
        kept = min(0.3, (1 + updates) / (10 + updates))
        average = kept * average + (1 - kept) * weights[name].double()
    used = dict(load_model(checkpoint).state_dict())[name]
    torch.testing.assert_close(used.double(), average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(used, trained[-1][name])


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
    waiting = ProgressiveConfig(stage_steps=10, waiting_kl=0)
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
