"""The loop without Ray: it learns, resumes bit-identically, and depends on nothing but its settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_job import SIZE, TRAIN, run, small_job, steps_of
from safetensors.torch import load_file

from jobs.checkpoints.format import load_model, read_meta, weights_sha256
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import AnyModelConfig, HvaeConfig, LvaeConfig, ObjectiveConfig, ProgressiveConfig, VlaeConfig


@pytest.fixture
def job(digit_dataset: Path, tmp_path: Path) -> TrainJob:
    return small_job(digit_dataset, tmp_path / "checkpoints", checkpoint_every=5)


def train(job: TrainJob) -> tuple[Path, list[Event]]:
    """Train and return the last checkpoint and the events."""
    events = run(job)
    return CheckpointManager(job.checkpoints).load(job.train.steps, Path("/nowhere")), events


def logged_steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, MetricPoint) and "train/loss" in event.metrics]


def test_training_emits_curve_and_checkpoints(job: TrainJob) -> None:
    checkpoint, events = train(job)
    assert checkpoint.name == "step-00000012"
    assert logged_steps(events) == [2, 4, 6, 8, 10, 12]
    assert steps_of(events, CheckpointSaved) == [5, 10, 12]
    assert isinstance(events[0], TrainingResumed)
    last = [event for event in events if isinstance(event, MetricPoint)][-2].metrics
    assert last["train/kl"] == pytest.approx(last["train/kl_rung_0"] + last["train/kl_rung_1"])
    assert last["train/loss"] == pytest.approx(last["train/reconstruction"] + last["train/kl"], rel=1e-6)
    elbos = {
        event.step: event.metrics["validation/elbo"]
        for event in events
        if isinstance(event, MetricPoint) and len(event.metrics) == 1
    }
    assert set(elbos) == {5, 10, 12}
    assert set(CheckpointManager(job.checkpoints).steps()) == {10, 12, max(elbos, key=lambda step: elbos[step])}


def test_training_reduces_the_loss(job: TrainJob) -> None:
    job = replace(job, train=job.train.model_copy(update={"steps": 60, "log_every": 10}))
    _, events = train(job)
    points = [event.metrics for event in events if isinstance(event, MetricPoint)]
    losses = [metrics["train/loss"] for metrics in points if "train/loss" in metrics]
    assert losses[-1] < losses[0] - 100


@pytest.mark.parametrize(
    ("model", "settings"),
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
def test_resumed_run_has_the_same_weights(
    job: TrainJob, tmp_path: Path, model: AnyModelConfig, settings: dict[str, object]
) -> None:
    job = replace(job, model=model, **settings)
    expected, events = train(job)
    killed = replace(job, checkpoints=str(tmp_path / "killed"))

    class KillError(Exception):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, MetricPoint) and event.step == 8:
            raise KillError

    with pytest.raises(KillError):
        train_model(killed, Worker(), kill)
    resumed, later = train(killed)
    for key in ("weights_sha256", "files"):
        files = [read_meta(path)[key] for path in (resumed, expected)]
        if key == "files":
            files = [each["optimizer.safetensors"] for each in files]
        assert files[0] == files[1]
    start = later[0]
    assert isinstance(start, TrainingResumed)
    assert start.step == 5
    # The curve continues without a gap and without a repeated step.
    kept = [point.step for point in start.history if "train/loss" in point.metrics]
    assert kept + logged_steps(later) == logged_steps(events)


def test_damaged_checkpoint_is_skipped(job: TrainJob) -> None:
    checkpoint, _ = train(job)
    expected = read_meta(checkpoint)["weights_sha256"]
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"step-00000012/model\.safetensors: "):
        load_model(checkpoint)
    latest = CheckpointManager(job.checkpoints).latest(Path("/nowhere"))
    assert latest == checkpoint.with_name("step-00000010")
    again, events = train(job)
    assert again == checkpoint
    assert [event.key for event in events if isinstance(event, TrainingWarning)] == ["damaged_12"]
    assert logged_steps(events) == [12]
    assert read_meta(again)["weights_sha256"] == expected


def test_checkpoint_rebuilds_its_model(job: TrainJob) -> None:
    checkpoint, _ = train(job)
    model = load_model(checkpoint)
    assert weights_sha256(model) == read_meta(checkpoint)["weights_sha256"]
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
    meta = json.loads((checkpoint / "checkpoint.json").read_text())
    (checkpoint / "checkpoint.json").write_text(json.dumps({**meta, "format": 0}))
    with pytest.raises(UserError, match=r"step-00000012: .*format 0"):
        load_model(checkpoint)


def test_checkpoint_model_is_the_moving_average(job: TrainJob) -> None:
    """Recomputed from the weights after every update; the decay of update n is min(decay, (1 + n) / (10 + n))."""
    settings = {"ema_decay": 0.3, "steps": 6, "checkpoint_every": 1, "keep_checkpoints": 10}
    job = replace(job, train=job.train.model_copy(update=settings))
    checkpoint, _ = train(job)
    folders = sorted(Path(job.checkpoints).iterdir())
    trained = [load_file(folder / "trained.safetensors") for folder in folders]
    name = next(key for key in trained[0] if key.endswith("weight"))
    average = trained[0][name].double()
    for updates, weights in enumerate(trained[1:], start=1):
        kept = min(0.3, (1 + updates) / (10 + updates))
        average = kept * average + (1 - kept) * weights[name].double()
    loaded = dict(load_model(checkpoint).state_dict())[name]
    torch.testing.assert_close(loaded.double(), average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(loaded, trained[-1][name])
