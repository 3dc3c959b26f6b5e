"""Training does not grow: not with its steps, its points or its checkpoints."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import local

from jobs.config import TrainConfig
from jobs.events import CheckpointSaved, Event
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker
from vlae.config import ObjectiveConfig, ProgressiveConfig, VlaeConfig

STEPS = 8_000


@pytest.mark.slow
def test_memory_stays_flat(digit_dataset: Path, tmp_path: Path) -> None:
    train = TrainConfig(steps=STEPS, batch_size=8, num_microbatches=2, checkpoint_every=200, log_every=25)
    model = VlaeConfig(network="mlp", latent_dims=(2, 3), hidden_dims=16)
    job = TrainJob(
        model, ObjectiveConfig(), ProgressiveConfig(), train, 0, local(digit_dataset), str(tmp_path / "checkpoints")
    )
    seen: list[tuple[int, float]] = []

    def watch(message: Event) -> None:
        if isinstance(message, CheckpointSaved):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((message.step, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    assert train_model(job, Worker(), watch) == STEPS
    steps, megabytes = np.array([one for one in seen if one[0] > STEPS / 5]).T  # what is there once is there by then
    slope = np.polyfit(steps, megabytes, 1)[0] * 1000
    print(f"{slope:.3f} MB per 1,000 steps, {megabytes[0]:.0f} -> {megabytes[-1]:.0f} MB")
    assert slope < 1
