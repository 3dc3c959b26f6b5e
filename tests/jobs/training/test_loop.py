"""The loop without Ray: it learns, resumes bit-identically, and depends on nothing but its settings."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import open_split
from helpers.small_job import SIZE, TRAIN, run, small_job, steps_of
from safetensors.torch import load_file

from jobs.checkpoints.format import load_model, read_meta, weights_sha256
from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.data.sampling import permute
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.training import loop
from jobs.training.loop import Validation, train_model
from jobs.training.state import TrainJob, Worker, machine_info, prepare, take_snapshot
from jobs.training.step import microbatch_noise, train_step
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
    checkpoint, events = train(replace(job, train=job.train.model_copy(update={"validate_every": 4})))
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
    assert set(elbos) == {4, 5, 8, 10, 12}
    best = max((5, 10, 12), key=lambda step: elbos[step])
    assert set(CheckpointManager(job.checkpoints).steps()) == {10, 12, best}


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


def finished(job: TrainJob, **machine: object) -> TrainJob:
    """Return a deterministic training whose last checkpoint was written on a machine with these differences."""
    job = replace(job, train=job.train.model_copy(update={"deterministic": True}))
    training = prepare(job, Worker())
    training.step = job.train.steps
    snapshot = take_snapshot(training, [], [], None)
    snapshot.meta["machine"] = machine_info(torch.device("cpu")) | machine
    CheckpointManager(job.checkpoints).save(snapshot)
    return job


@pytest.mark.parametrize(
    ("machine", "fix"),
    [({"device": "cuda"}, r"train\.device=cuda"), ({"threads": 99}, r"train\.threads_per_worker=99")],
)
def test_deterministic_run_elsewhere_is_refused(job: TrainJob, machine: dict[str, object], fix: str) -> None:
    job = finished(job, **machine)
    with pytest.raises(UserError, match=rf"train\.deterministic=true: .*{fix}"):
        run(job)
    run(replace(job, train=job.train.model_copy(update={"deterministic": False})))


def test_deterministic_run_restricts_torch(job: TrainJob) -> None:
    """To deterministic kernels until its end; another processor is a warning."""
    job, events, restricted = finished(job, processor="another"), [], []

    def emit(event: Event) -> None:
        events.append(event)
        restricted.append(torch.are_deterministic_algorithms_enabled())

    assert train_model(job, Worker(), emit) == 12
    assert [event.key for event in events if isinstance(event, TrainingWarning)] == ["processor"]
    assert all(restricted)
    assert not torch.are_deterministic_algorithms_enabled()


def test_validation_is_in_evaluation_mode(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a random part of the images, from running statistics that stay as they are."""
    monkeypatch.setattr(loop, "_IMAGES", 8)
    training = prepare(replace(job, model=VlaeConfig(norm="batch", **SIZE)), Worker())
    train_step(training, training.loader.images(0))
    before = [tensor.clone() for tensor in training.running_stats]
    elbo = Validation(training).elbo(training.model)
    assert all(map(torch.equal, training.running_stats, before))
    assert training.model.training
    data, model = open_split(Path(job.data.url), "validation"), training.model.eval()
    assert len(data) > 16
    images = data.images(permute(np.arange(8), len(data), job.seed)).float() / 255
    noise = [
        microbatch_noise(model, range(i, i + 1), 1, job.seed, loop._NOISE_STEP, torch.device("cpu")) for i in range(8)
    ]
    with torch.no_grad():
        terms = model(images, [torch.cat(rung) for rung in zip(*noise, strict=True)])
    assert elbo == pytest.approx(-(terms.reconstruction + terms.kl.sum(1)).mean().item(), rel=1e-5)


def test_speed_leaves_out_the_validation(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that advances by a second with each pass of the model, of training and of validation."""
    seconds = 0.0

    def tick(*_: object) -> None:
        nonlocal seconds
        seconds += 1

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        module.register_forward_hook(tick)
        return module

    clock: Any = SimpleNamespace(monotonic=lambda: seconds, time_ns=time.time_ns)
    monkeypatch.setattr("jobs.training.metrics.time", clock)
    settings = {"ema_decay": 0, "steps": 6, "validate_every": 3}
    events: list[Event] = []
    train_model(replace(job, train=job.train.model_copy(update=settings)), Worker(wrap=wrap), events.append)
    speeds = [event.metrics.get("train/images_per_second") for event in events if isinstance(event, MetricPoint)]
    assert [speed for speed in speeds if speed] == [16, 16, 16]
    assert seconds > 6 + 8
