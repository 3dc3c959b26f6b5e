"""What a checkpoint is written from: the state of a training at one step, which goes on meanwhile."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers.small_job import small_job

from jobs.training.snapshot import take_snapshot
from jobs.training.state import Worker, prepare
from jobs.training.step import train_step
from vlae.config import LvaeConfig


def test_a_snapshot_is_a_copy(digit_dataset: Path, tmp_path: Path) -> None:
    """Also of what is laid out channels-last, which is copied anyway, and of buffers and counters, which are not."""
    model = LvaeConfig(latent_dims=(2, 3), width=4, hidden_dims=16, norm="batch", batch_norm_heads=True)
    training = prepare(replace(small_job(digit_dataset, tmp_path / "none"), model=model), Worker())
    train_step(training, training.loader.images(0))
    live = [*training.model.state_dict().values(), *training.ema.state_dict().values()]
    live += [tensor for state in training.optimizer.state.values() for tensor in state.values()]
    assert any(not tensor.is_contiguous() for tensor in live)
    assert any(not tensor.is_floating_point() for tensor in live)
    pending = [[1.0, 2.0]]
    snapshot = take_snapshot(training, [], pending, None)
    copied = [*snapshot.weights.values(), *snapshot.trained.values(), *snapshot.optimizer.values()]
    assert len(copied) == len(live) - 1  # the average counts its updates
    before = [tensor.clone() for tensor in copied]
    storages = {tensor.untyped_storage().data_ptr() for tensor in live}
    for tensor in live:
        tensor.data.fill_(7)
    assert not any(tensor.untyped_storage().data_ptr() in storages for tensor in copied)
    assert all(torch.equal(tensor, old) for tensor, old in zip(copied, before, strict=True))
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in copied)
