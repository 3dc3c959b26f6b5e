"""The metric registry: every entry works, and every place that names metrics derives from it."""

import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
from mlflow.utils.validation import _validate_metric

from jobs.data.sources.base import factor_name_faults
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.encode import Encodings
from jobs.evaluation.inputs import EncodedDataset, RungFactorMatrix
from jobs.evaluation.registry import (
    CHAMPION_METRICS,
    HEADLINE_METRICS,
    METRICS,
    SEARCHABLE_METRICS,
    SECTIONS,
    Metric,
    headline,
    metrics_markdown,
    required_factors,
    required_images,
    undefined_notes,
)
from jobs.search.config import TuneConfig

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_entry_function_and_inputs_exist(metric: Metric) -> None:
    resolve_name(metric.function)
    for path in (*metric.inputs, *metric.keywords):
        source: type = RungFactorMatrix if metric.group == "hierarchy" else EncodedDataset
        name = path.removeprefix("codes.")
        source = source if name == path else Encodings
        assert name in source.__dataclass_fields__ or hasattr(source, name), name
    assert metric.section in SECTIONS
    assert metric.doc.endswith((".", "?", ")"))
    assert not metric.per_rung or "/" not in metric.name


def test_entry_names_are_unique() -> None:
    assert [name for name, count in Counter(metric.name for metric in METRICS).items() if count > 1] == []


def test_every_logged_name_matches_one_entry() -> None:
    for name in ("kl/rung_0", "probe/rung_1/a", "probe/all/a", "mig/a", "few_labels/100", "gibbs_distance/step_20"):
        assert len([metric for metric in METRICS if metric.pattern.fullmatch(name)]) == 1, name
    assert not [metric for metric in METRICS if metric.pattern.fullmatch("mig/rung_0")]  # of `mig`, per rung


def test_logged_names_of_valid_factors_are_valid_in_mlflow() -> None:
    """A factor name that is accepted gives metric names that MLflow accepts and one entry matches."""
    rng = random.Random(0)
    parts = {part for metric in METRICS for part in metric.name.split("/")} | {"rung_1", "step_5", "10", "a" * 100}
    names = [*parts, *("".join(rng.choices("ab./_- 0:R\n", k=rng.randrange(5))) for _ in range(1000))]
    accepted = {name for name in names if not factor_name_faults([name])}
    assert len(accepted) > 100
    values = [metric.name.replace("rung_l", "rung_999") for metric in METRICS]
    for name in accepted:
        for key in (value.replace("FACTOR", name) for value in values if "FACTOR" in value):
            _validate_metric(f"test/{key}", 0.0, 0, 0)
            assert sum(bool(metric.pattern.fullmatch(key)) for metric in METRICS) == 1, key


def test_compute_expands_placeholders_in_order() -> None:
    metric = Metric("m/rung_l/FACTOR", function="f", range="", doc="")
    values = metric.compute(None, {"f": [[1, 2], [3, 4]]}, ["a", "b"])
    assert values == {"m/rung_0/a": 1, "m/rung_0/b": 2, "m/rung_1/a": 3, "m/rung_1/b": 4}
    metric = Metric("m/step_n", function="f", field="x", range="", doc="")
    assert metric.compute(None, {"f": {"x": {5: 1.5}}}, []) == {"m/step_5": 1.5}
    assert metric.compute(None, {"f": {}}, []) == {}
    assert metric.compute(None, {"f": None}, []) == {}


def test_compute_shared_function_is_called_once() -> None:
    results: dict[str, object] = {}
    first, second = (Metric(name, function="datetime:datetime.now", field=name, range="", doc="")
                     for name in ("microsecond", "second"))  # fmt: skip
    values = first.compute(None, results, []) | second.compute(None, results, [])
    now = results["datetime:datetime.now"]
    assert values == {"microsecond": now.microsecond, "second": now.second}  # type: ignore[attr-defined]


def test_settings_choices_are_those_of_the_registry() -> None:
    assert set(get_args(EvaluateConfig.model_fields["champion_metric"].annotation)) == set(CHAMPION_METRICS)
    assert {"elbo", "mig", "mig_sup"} <= set(CHAMPION_METRICS) <= set(SEARCHABLE_METRICS)
    assert TuneConfig(objectives=SEARCHABLE_METRICS).objectives == SEARCHABLE_METRICS
    for config in (lambda: EvaluateConfig(champion_metric="kl"), lambda: TuneConfig(objectives=("kl",))):
        with pytest.raises(ValueError, match=r"champion_metric|objectives"):
            config()


def test_searchable_metrics_are_scalars_that_go_up() -> None:
    searchable = [metric for metric in METRICS if metric.searchable]
    assert all(metric.higher_is_better and "/" not in metric.name for metric in searchable)
    assert all("/" not in metric.name for metric in HEADLINE_METRICS)


def test_metric_searchable_with_train_inputs_is_refused() -> None:
    """A search has no train images."""
    with pytest.raises(ValueError, match="new"):
        Metric("new", function="math:sqrt", inputs=("train_means",), searchable=True, range="", doc="")


def test_headline_selects_in_the_order_of_the_registry() -> None:
    assert list(headline({"mig": 1.0, "elbo": 2.0, "irs": 3.0}).items()) == [("elbo", 2.0), ("mig", 1.0)]


def test_required_factors_is_the_largest() -> None:
    assert required_factors(["elbo", "mean_color_gap"]) == 0
    assert required_factors(["elbo", "mig"]) == 1
    assert required_factors(["mig_sup", "mig"]) == 2


def test_required_images_is_the_largest() -> None:
    assert required_images(["elbo", "mean_color_gap"]) == 0
    assert required_images(["elbo", "mig"]) == 20


def test_undefined_notes_name_metrics_and_sections() -> None:
    assert undefined_notes(20) == []
    (note,) = undefined_notes(19)
    assert "20" in note
    assert "19" in note
    assert "'Disentanglement'" in note
    assert "gibbs_distance" in note
    assert "elbo" not in note
    assert "'Color and class'" not in note


def test_metrics_page_documents_every_name() -> None:
    page = DOCS.read_text()
    assert page.count("<!-- metrics -->") == 1
    table = metrics_markdown()
    for metric in METRICS:
        assert f"| `{metric.name}`" in table
        assert not metric.per_rung or f"`{metric.name}/rung_l`" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}


def test_import_is_light() -> None:
    code = "import sys, jobs.evaluation.registry; print({'torch', 'sklearn', 'numba', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
