"""Which metrics a dataset has: with several factors, with a class alone, with no factors."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jobs.evaluation.code_metrics import compute_group, compute_metrics
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import EncodedDataset
from jobs.evaluation.registry import METRIC_GROUPS, METRICS

SIZES = (3, 4, 10)


def encoded(
    rows: int = 300, columns: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = ("a", "b", "class")
) -> EncodedDataset:
    """Return a ladder with factor 0 in rung 0, the others in rung 1, and a collapsed latent in rung 1."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(size, size=2 * rows) for size in SIZES], axis=1)
    codes = (factors + rng.normal(0, 0.1, factors.shape)).astype(np.float32)
    collapsed = rng.normal(0, 1e-3, (2 * rows, 1)).astype(np.float32)
    rungs = [codes[:, :1], np.concatenate([codes[:, 1:], collapsed], axis=1)]
    kl = [np.full((rows, 1), 2.0, np.float32), np.tile(np.array([1.0, 3.0, 1e-4], np.float32), (rows, 1))]
    test, train = ([rung[split] for rung in rungs] for split in (slice(rows), slice(rows, None)))
    factors = factors[:, list(columns)]
    return EncodedDataset(
        Encodings(test, test, test, [np.zeros_like(rung) for rung in test], kl, np.zeros(rows, np.float32), 0.0),
        factors[:rows],
        list(names),
        dimensions=768,
        discrete=True,
        seed=0,
        train_rung_means=train,
        train_rung_samples=train,
        train_factors=factors[rows:],
    )


def all_metrics(dataset: EncodedDataset) -> dict[str, float]:
    return {name: value for group in METRIC_GROUPS for name, value in compute_group(group, dataset).items()}


@pytest.mark.slow
def test_groups_several_factors_compute_every_metric() -> None:
    metrics = all_metrics(encoded())
    for name in ("dci_disentanglement", "dci_completeness", "dci_informativeness", "infoe", "factor_vae", "beta_vae"):
        assert metrics[name] > 0.95, name
    for name in ("mig", "mig_sup", "dcimig", "explicitness", "infom", "infoc"):
        assert metrics[name] > 0.85, name
    # 300 rows determine the axes of rung 1 to a few degrees only, which mixes the wide latent into the narrow latent.
    assert 0.75 < metrics["mig_ica"] < metrics["mig"]
    assert metrics["few_labels/100"] > metrics["few_labels/10"] > 0.15
    assert "few_labels/1000" not in metrics  # there are 300 train rows
    assert metrics["mig/rung_0"] < 0.5 < metrics["mig/rung_1"]  # rung 0 holds one factor of three
    assert metrics["mig"] == pytest.approx((metrics["mig/a"] + metrics["mig/b"] + metrics["mig/class"]) / 3)
    assert metrics["dci_completeness/rungs"] > 0.95
    assert metrics["total_correlation"] < 0.1
    registered = {metric.name for metric in METRICS if metric.group in METRIC_GROUPS and metric.name != "udr"}
    unmatched = {name for name in registered if "/" not in name and name not in metrics}
    assert unmatched == set()


@pytest.mark.slow
def test_groups_one_factor_compute_what_it_defines() -> None:
    metrics = all_metrics(encoded(columns=(2,), names=("class",)))
    finite = {name for name, value in metrics.items() if math.isfinite(value)}
    assert {"mig", "jemmig", "sap", "explicitness", "few_labels/10", "probe/rung_0/class", "probe/all/class"} <= set(
        metrics
    )
    assert {"dci_completeness", "dci_informativeness", "infoe", "irs"} <= finite
    assert not {"dci_disentanglement", "factor_vae", "beta_vae", "infom", "mig_sup"} & finite
    assert metrics["probe/rung_1/class"] > 0.95
    assert metrics["probe/rung_0/class"] < 0.2


def test_groups_no_factors_compute_unsupervised_metrics() -> None:
    metrics = all_metrics(encoded(columns=(), names=()))
    unsupervised = {"total_correlation", "wasserstein_correlation", "pairwise_information"}
    assert {name.partition("/")[0] for name in metrics} == unsupervised


def test_probes_group_siblings_adds_udr() -> None:
    """Models of other seeds with the same latents, rotated by a permutation and scaled, have a UDR of about 1."""
    dataset = encoded()
    sibling = dataset.means[:, ::-1] * np.array([-1, 2, 3, 1], np.float32)
    metrics = compute_group("probes", replace(dataset, sibling_means=[sibling, sibling]))
    assert metrics["udr"] == pytest.approx(1, abs=0.1)
    assert "udr" not in compute_group("probes", dataset)


def test_groups_few_rows_compute_nothing_below_twenty() -> None:
    assert all(isinstance(value, float) for value in all_metrics(encoded(rows=25)).values())
    assert all_metrics(encoded(rows=12)) == {}


def test_compute_metrics_per_rung_uses_that_rung_alone() -> None:
    dataset = encoded()
    mig = [metric for metric in METRICS if metric.name == "mig"]
    metrics = compute_metrics(mig, dataset)
    assert metrics["mig/rung_1"] == compute_metrics(mig, dataset.select_rung(1))["mig"]
    assert set(compute_metrics(mig, dataset.select_rung(1))) == {"mig"}
