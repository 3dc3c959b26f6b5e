"""Objectives of a search, against the metrics of the same images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.datasets import open_split
from helpers.small_job import run, small_job
from helpers.small_models import small

from jobs.checkpoints.format import load_model
from jobs.evaluation.inputs import encode_sample, sample
from jobs.evaluation.registry import SEARCHABLE_METRICS
from jobs.search.objectives import objective_metrics
from vlae.metrics import mig_score, mig_sup_score, modularity_score, rung_compactness, rung_modularity
from vlae.total_effects import total_effects


def test_objective_metrics_match_direct_computation(digit_dataset: Path, tmp_path: Path) -> None:
    """Each objective is the metric of `vlae.metrics` on the codes of the validation images."""
    split = open_split(digit_dataset, "train")
    run(small_job(digit_dataset, tmp_path, steps=50, checkpoint_every=50, ema_decay=0))  # no collapsed rungs
    model = load_model(tmp_path / "step-00000050")
    metrics = objective_metrics(model, split, SEARCHABLE_METRICS, seed=5)
    images = sample(split, len(split), 5)
    encoded = encode_sample(model, images, torch.Generator().manual_seed(5), 5)
    color = total_effects(model, 4000, torch.Generator().manual_seed(1)).mean_color_share
    assert metrics.pop("mean_color_gap") == pytest.approx(color[0] - color[-1], abs=0.04)
    means, fractions = np.concatenate(encoded.codes.means, axis=1), encoded.information
    assert metrics == {
        "mig": mig_score(means, images.factors),
        "mig_sup": mig_sup_score(means, images.factors),
        "modularity": modularity_score(means, images.factors),
        "rung_compactness": rung_compactness(fractions),
        "rung_modularity": rung_modularity(fractions),
    }


def test_objective_metrics_omit_elbo(digit_dataset: Path, tmp_path: Path) -> None:
    """The ELBO comes from the training itself, so no image is encoded for it."""
    run(small_job(digit_dataset, tmp_path, steps=1))
    model = load_model(tmp_path / "step-00000001")
    assert objective_metrics(model, open_split(digit_dataset, "train"), ("elbo",), seed=0) == {}


def test_mean_color_gap_is_to_the_top_rung(digit_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    effects = SimpleNamespace(mean_color_share=[0.9, 0.5, 0.2])
    monkeypatch.setattr("jobs.search.objectives.total_effects", lambda *_: effects)
    model, split = small("vlae", shape=(3, 16, 16)), open_split(digit_dataset, "train")
    assert objective_metrics(model, split, ("mean_color_gap",), seed=0) == {"mean_color_gap": pytest.approx(0.7)}
