"""Which scores a dataset gets: with several factors, with a label alone, with none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jobs.config import EvaluateConfig
from jobs.evaluation.code_metrics import METRIC_GROUPS, compute_group, probe_family
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import EncodedDataset
from jobs.evaluation.model_metrics import Scores

SIZES = (3, 4, 10)


def encoded(
    rows: int = 300, columns: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = ("a", "b", "class")
) -> EncodedDataset:
    """A ladder that holds factor 0 in rung 0, the others in rung 1, where one latent is dead."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(size, size=2 * rows) for size in SIZES], axis=1)
    codes = (factors + rng.normal(0, 0.1, factors.shape)).astype(np.float32)
    dead = rng.normal(0, 1e-3, (2 * rows, 1)).astype(np.float32)
    rungs = [codes[:, :1], np.concatenate([codes[:, 1:], dead], axis=1)]
    kl = [np.full((rows, 1), 2.0, np.float32), np.tile(np.array([1.0, 3.0, 1e-4], np.float32), (rows, 1))]
    test, train = ([rung[part] for rung in rungs] for part in (slice(rows), slice(rows, None)))
    known = factors[:, list(columns)]
    return EncodedDataset(
        Encodings(test, test, test, [np.zeros_like(rung) for rung in test], kl, np.zeros(rows, np.float32), 0.0),
        known[:rows],
        train,
        train,
        known[rows:],
        list(names),
        [],
        768,
        True,
    )


def all_scores(of: EncodedDataset) -> Scores:
    config = EvaluateConfig()
    return {name: value for family in METRIC_GROUPS for name, value in compute_group(family, of, config).items()}


@pytest.mark.slow
def test_several_factors_have_every_score() -> None:
    scores = all_scores(encoded())
    for name in ("dci_disentanglement", "dci_completeness", "dci_informativeness", "infoe", "factor_vae", "beta_vae"):
        assert scores[name] > 0.95, name
    for name in ("mig", "mig_sup", "dcimig", "explicitness", "infom", "infoc"):
        assert scores[name] > 0.85, name
    # 300 rows tell the axes of rung 1 to a few degrees only, which mixes the wide latent into the narrow one.
    assert 0.75 < scores["mig_ica"] < scores["mig"]
    assert scores["few_labels/100"] > scores["few_labels/10"] > 0.15
    assert "few_labels/1000" not in scores  # there are 300 train rows
    assert scores["mig/rung_0"] < 0.5 < scores["mig/rung_1"]  # rung 0 holds one factor of three
    assert scores["mig"] == pytest.approx((scores["mig/a"] + scores["mig/b"] + scores["mig/class"]) / 3)
    assert scores["dci_completeness/rungs"] > 0.95
    assert scores["total_correlation"] < 0.1


@pytest.mark.slow
def test_a_label_alone_has_what_one_factor_defines() -> None:
    scores = all_scores(encoded(columns=(2,), names=("class",)))
    finite = [name for name, value in scores.items() if math.isfinite(value)]
    assert {"mig", "jemmig", "sap", "explicitness", "few_labels/10", "probe/rung_0/class", "probe/all/class"} <= set(
        scores
    )
    assert {"dci_completeness", "dci_informativeness", "infoe", "irs"} <= set(finite)
    assert not {"dci_disentanglement", "factor_vae", "beta_vae", "infom", "mig_sup"} & set(finite)
    assert scores["probe/rung_1/class"] > 0.95
    assert scores["probe/rung_0/class"] < 0.2


def test_no_factors_leave_what_needs_none() -> None:
    scores = all_scores(encoded(columns=(), names=()))
    unsupervised = {"total_correlation", "wasserstein_correlation", "pairwise_information"}
    assert {name.partition("/")[0] for name in scores} == unsupervised


def test_models_of_other_seeds_are_compared() -> None:
    alone = encoded()
    turned = alone.means[:, ::-1] * np.array([-1, 2, 3, 1], np.float32)
    scores = compute_group(probe_family, replace(alone, siblings=[turned, turned]), EvaluateConfig())
    assert scores["udr"] == pytest.approx(1, abs=0.1)


def test_few_rows_have_scores_that_mean_something_or_none() -> None:
    assert all(isinstance(value, float) for value in all_scores(encoded(rows=25)).values())
    assert all_scores(encoded(rows=12)) == {}
