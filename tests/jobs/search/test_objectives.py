"""Objectives of a search against the evaluation's own scores of the same images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import open_split
from helpers.small_job import run, small_job

from jobs.checkpoints.format import load_model
from jobs.evaluation.encode import encode
from jobs.evaluation.inputs import information, sample
from jobs.search.config import OBJECTIVES
from jobs.search.objectives import objective_scores
from vlae.metrics import mig_score, mig_sup_score, modularity_score, rung_compactness, rung_modularity
from vlae.total_effects import total_effects


def test_they_are_the_scores_of_the_evaluation(digit_dataset: Path, tmp_path: Path) -> None:
    split = open_split(digit_dataset, "train")
    run(small_job(digit_dataset, tmp_path, steps=150, checkpoint_every=150, ema_decay=0))  # rungs that tell something
    model = load_model(tmp_path / "step-00000150")
    found = objective_scores(model, split, OBJECTIVES, seed=5)
    shown = sample(split, len(split), 5)
    codes = encode(model, shown.images, torch.Generator().manual_seed(5))
    color = total_effects(model, 4000, torch.Generator().manual_seed(1)).mean_color_share
    assert abs(color[0] - color[-1]) > 0.06  # a wrong sign would be seen
    assert found.pop("mean_color_gap") == pytest.approx(color[0] - color[-1], abs=0.04)
    means, shares = np.concatenate(codes.means, axis=1), information(codes, shown.factors)
    assert found == {
        "mig": mig_score(means, shown.factors),
        "mig_sup": mig_sup_score(means, shown.factors),
        "modularity": modularity_score(means, shown.factors),
        "rung_compactness": rung_compactness(shares),
        "rung_modularity": rung_modularity(shares),
    }


def test_the_elbo_alone_costs_nothing(digit_dataset: Path) -> None:
    split = open_split(digit_dataset, "train")
    assert objective_scores(None, split, ("elbo",), seed=0) == {}  # type: ignore[arg-type]
