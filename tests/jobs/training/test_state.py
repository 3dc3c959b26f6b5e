"""The state of a training: a snapshot is a copy of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.small_job import SIZE, small_job

from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrainConfig
from jobs.events import MetricPoint
from jobs.training.state import Worker, _preload_device, machine_info, prepare, take_snapshot
from jobs.training.step import train_step
from vlae.config import LvaeConfig


def test_snapshot_shares_no_memory_with_training(digit_dataset: Path, tmp_path: Path) -> None:
    """Neither channels-last weights, which any copy reorders, nor buffers, counters and curve, which it need not."""
    model = LvaeConfig(norm="batch", batch_norm_heads=True, **SIZE)
    training = prepare(replace(small_job(digit_dataset, tmp_path / "none"), model=model), Worker())
    train_step(training, training.loader.images(0))
    tensors = [*training.model.state_dict().values(), *training.ema.state_dict().values()]
    tensors += [tensor for state in training.optimizer.state.values() for tensor in state.values()]
    assert any(not tensor.is_contiguous() for tensor in tensors)
    assert any(not tensor.is_floating_point() for tensor in tensors)
    history: list[MetricPoint] = []
    snapshot = take_snapshot(training, history, [[1.0, 2.0]], None)
    history.append(MetricPoint(1, 0, {}))
    assert snapshot.history == []
    copies = [*snapshot.weights.values(), *snapshot.trained.values(), *snapshot.optimizer.values()]
    assert len(copies) == len(tensors) - 1  # the average counts its updates
    before = [tensor.clone() for tensor in copies]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    for tensor in tensors:
        tensor.data.fill_(7)
    assert not any(tensor.untyped_storage().data_ptr() in storages for tensor in copies)
    assert all(torch.equal(tensor, old) for tensor, old in zip(copies, before, strict=True))
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in copies)


def test_training_resumed_keeps_its_warnings(digit_dataset: Path, tmp_path: Path) -> None:
    """A checkpoint holds the warnings, because MLflow may be unavailable until the end of the command."""
    job = small_job(digit_dataset, tmp_path / "checkpoints")
    training = prepare(job, Worker())
    training.warnings["processor"] = "another one"
    CheckpointManager(job.checkpoints).save(take_snapshot(training, [], [], None))
    assert prepare(job, Worker()).warnings == {"processor": "another one"}
    assert CheckpointManager(job.checkpoints).latest_history().warnings == {"processor": "another one"}


@pytest.mark.parametrize("deterministic", [True, False])
def test_snapshot_has_the_machine_if_deterministic(digit_dataset: Path, tmp_path: Path, deterministic: bool) -> None:
    training = prepare(small_job(digit_dataset, tmp_path / "none", deterministic=deterministic), Worker())
    snapshot = take_snapshot(training, [], [], None)
    assert snapshot.meta["machine"] == (machine_info(torch.device("cpu")) if deterministic else None)
    assert machine_info(torch.device("cpu"))["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("preload", "device", "num_bytes", "expected"),
    [
        ("off", "cuda", 1, None),
        ("ram", "cuda", 10**12, "cpu"),
        ("device", "cuda", 10**12, "cuda"),
        ("device", "cpu", 10**12, "cpu"),
        ("auto", "cpu", 1, None),
        ("auto", "cuda", 250, "cuda"),
        ("auto", "cuda", 251, None),
    ],
)
def test_preload_device_follows_setting_and_free_memory(
    preload: str, device: str, num_bytes: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU with 1,000 bytes free."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 2000))
    data: Any = SimpleNamespace(num_bytes=num_bytes)
    result = _preload_device(TrainConfig(preload=preload), data, torch.device(device))
    assert (result and result.type) == expected
