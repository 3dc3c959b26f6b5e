"""The loop without Ray: it learns, resumes to the bit, and a run depends on nothing but its settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import TRAIN, small_job
from safetensors.torch import load_file

from jobs.checkpoints.format import load_model, read_meta, weights_sha256
from jobs.checkpoints.manager import Checkpoints
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import AnyModelConfig, HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "checkpoints", checkpoint_every=5)


def run(job: TrainJob) -> tuple[Path, list[Event]]:
    messages: list[Event] = []
    step = train_model(job, Worker(), messages.append)
    return Checkpoints(job.checkpoints).fetch(step, Path("/nowhere")), messages


def steps_of(messages: list[Event]) -> list[int]:
    return [m.step for m in messages if isinstance(m, MetricPoint) and "train/loss" in m.metrics]


def test_curve_and_commits(job: TrainJob) -> None:
    checkpoint, messages = run(job)
    assert checkpoint.name == "step-00000012"
    assert steps_of(messages) == [2, 4, 6, 8, 10, 12]
    assert [m.step for m in messages if isinstance(m, CheckpointSaved)] == [5, 10, 12]
    assert isinstance(messages[0], TrainingResumed)
    last = [m for m in messages if isinstance(m, MetricPoint)][-2].metrics
    assert last["train/kl"] == pytest.approx(last["train/kl_rung_0"] + last["train/kl_rung_1"])
    assert last["train/loss"] == pytest.approx(last["train/reconstruction"] + last["train/kl"], rel=1e-6)
    scores = {
        m.step: m.metrics["validation/elbo"] for m in messages if isinstance(m, MetricPoint) and len(m.metrics) == 1
    }
    assert set(scores) == {5, 10, 12}
    assert set(Checkpoints(job.checkpoints).steps()) == {10, 12, max(scores, key=lambda step: scores[step])}


def test_it_learns(job: TrainJob) -> None:
    job = replace(job, train=job.train.model_copy(update={"steps": 60, "log_every": 10}))
    _, messages = run(job)
    losses = [m.metrics["train/loss"] for m in messages if isinstance(m, MetricPoint) and "train/loss" in m.metrics]
    assert losses[-1] < losses[0] - 100


SIZE = {"latent_dims": (2, 3), "width": 4, "hidden_dims": 16}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (VlaeConfig(**SIZE), {}),
        (HvaeConfig(**SIZE), {"train": TrainConfig(**{**TRAIN, "checkpoint_every": 5, "ema_decay": 0})}),
        (LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE), {}),
        (
            VlaeConfig(likelihood="gaussian", likelihood_scale="optimal", prior_shape=4, **SIZE),
            {
                "objective": ObjectiveConfig(
                    beta=(2, 1), total_correlation=1, mmd=(10, 0), mmd_decay_steps=6, free_bits=0.1
                ),
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

    def die_after_seven(message: Event) -> None:
        if isinstance(message, MetricPoint) and message.step == 8:
            raise KillError

    with pytest.raises(KillError):
        train_model(part, Worker(), die_after_seven)
    resumed, later = run(part)
    assert read_meta(resumed)["weights_sha256"] == read_meta(whole)["weights_sha256"]
    assert read_meta(resumed)["files"]["optimizer.safetensors"] == read_meta(whole)["files"]["optimizer.safetensors"]
    started = later[0]
    assert isinstance(started, TrainingResumed)
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
    assert [m.text for m in messages if isinstance(m, TrainingWarning)] == [
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


def test_the_checkpoints_model_is_the_moving_average(job: TrainJob) -> None:
    """By numpy, from the weights after every update; the decay of update n is min(decay, (1 + n) / (10 + n))."""
    job = replace(job, train=job.train.model_copy(update={"ema_decay": 0.3, "steps": 6, "checkpoint_every": 1}))
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
