"""Memory of a training, which grows neither with its steps nor with its points and checkpoints."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_job import small_job

from jobs.config import TrainConfig
from jobs.events import CheckpointSaved, Event
from jobs.training.loop import train_model
from jobs.training.state import Worker
from vlae.config import VlaeConfig

STEPS = 8_000


@pytest.mark.slow
def test_memory_stays_constant(digit_dataset: Path, tmp_path: Path) -> None:
    train = TrainConfig(steps=STEPS, batch_size=8, num_microbatches=2, checkpoint_every=200, log_every=25)
    model = VlaeConfig(network="mlp", latent_dims=(2, 3), hidden_dims=16)
    job = replace(small_job(digit_dataset, tmp_path / "checkpoints"), train=train, model=model)
    samples: list[tuple[int, float]] = []

    def measure(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((event.step, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    assert train_model(job, Worker(), measure) == STEPS
    # The first fifth holds what is allocated once.
    steps, megabytes = np.array([sample for sample in samples if sample[0] > STEPS / 5]).T
    slope = np.polyfit(steps, megabytes, 1)[0] * 1000
    print(f"{slope:.3f} MB per 1,000 steps, {megabytes[0]:.0f} -> {megabytes[-1]:.0f} MB")
    assert slope < 1
