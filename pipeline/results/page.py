"""The page of results: several seeds of several models, as Markdown."""

import math
from collections.abc import Mapping, Sequence

from jobs.evaluation.registry import METRICS, SECTIONS, Metric
from jobs.tracking.query import TrackedRun
from pipeline.results.protocol import LADDERS, STACK, Models, claims, metric_names, published, values
from pipeline.results.statistics import interval, paired_difference
from pipeline.results.table import ExperimentKey

FIGURES = tuple((model, "blocks") for model in ("vlae", "grown", "hvae"))
_MODELS = (*LADDERS, STACK, "lvae", "vae")
_PREFIX = "claim-"  # of the presets
_PAIRS = (*((ladder, STACK) for ladder in LADDERS), ("axes", "provlae"))  # compared seed by seed
_METRICS = tuple(metric for metric in METRICS if metric.in_results)

_INTRODUCTION = """\
# Results

`python -m pipeline.results` writes this page from the MLflow runs of `preset=claim`, by way of the tables in results/.
Only the numbers from other papers are typed by hand. A cell is the mean over seeds and the half width of its 95 %
interval (Student's t); the head of each column has the number of seeds. [metrics.md](metrics.md) defines each metric.
Each section starts with its claims: an order holds where its interval excludes 0, and fractions and MIG are judged by
their means. Each section ends with its runs and the commands that repeat them.

Limits:

- The trainings are short. 1,000 steps of 48 images are about two passes over the digit scenes, far from convergence.
- On digit scenes the hue lies in the bottom rung of the ladders `vlae` and `grown`, and the digit above it. Contrast
  and luminance do not follow in the plain ladder `vlae`. On sprites the order is reversed where it is clear: simple
  factors sit higher.
- What the upper layers of a bottom-up stack add to its bottom layer is not listed. They are computed from the bottom
  layer, so by the data-processing inequality they cannot hold more information. That is a theorem, not a finding.
- Each stack is one architecture with one training. Nothing is concluded about stacks in general.
"""


def group_by_experiment(runs: Sequence[TrackedRun]) -> dict[ExperimentKey, Models]:
    """Return the newest run by seed by model by experiment, from runs ordered newest first.

    Of each dataset and number of steps, only runs on the data of the newest run count, and of each model only runs with
    the settings of its newest run, except for the seed.
    """
    fingerprints: dict[ExperimentKey, str] = {}
    settings: dict[tuple[ExperimentKey, str], object] = {}
    experiments: dict[ExperimentKey, Models] = {}
    for run in runs:
        preset = run.values.get("preset", "")
        if not preset.startswith(_PREFIX):
            continue
        key, model = ExperimentKey.of(run), preset.removeprefix(_PREFIX)
        params = {name: value for name, value in run.params.items() if name != "seed"}
        same_data = fingerprints.setdefault(key, run.data_fingerprint) == run.data_fingerprint
        if same_data and settings.setdefault((key, model), params) == params:
            experiments.setdefault(key, {}).setdefault(model, {}).setdefault(int(run.params["seed"]), run)

    def order(model: str) -> tuple[int, str]:
        return (_MODELS.index(model) if model in _MODELS else len(_MODELS), model)

    return {key: {model: experiments[key][model] for model in sorted(experiments[key], key=order)}
            for key in sorted(experiments)}  # fmt: skip


def page(experiments: Mapping[ExperimentKey, Models]) -> str:
    """Return the page of all experiments as Markdown."""
    lines = [_INTRODUCTION]
    for key, models in experiments.items():
        lines += [f"## {key.data}, {key.steps:,} steps", "", *claims(key.data, models), *_figures(key, models)]
        for section, meaning in SECTIONS.items():
            lines += _table(section, meaning, [metric for metric in _METRICS if metric.section == section], models)
        for first, second in _PAIRS:
            lines += _differences(models, first, second)
        lines += [*published(key.data), *_runs(key, models)]
    return "\n".join(lines) + "\n"


def _table(title: str, meaning: str, metrics: Sequence[Metric], models: Models) -> list[str]:
    """Return a table with one row per metric and one column per model."""
    rows = []
    for name in metric_names(models, metrics):
        cells = []
        for runs in models.values():
            seeds = values(runs, name)
            note = f" (of {len(seeds)} seeds)" if len(seeds) < len(runs) else ""
            cells.append(f"{interval(list(seeds.values()))}{note}" if seeds else "-")
        rows.append([f"`{name}`", *cells])
    if not rows:
        return []
    head = [f"{model} ({len(runs)})" for model, runs in models.items()]
    return [f"### {title}", "", meaning, "", *_markdown(["", *head], rows), ""]


def _differences(models: Models, first: str, second: str) -> list[str]:
    """Return a table of one model minus another, seed by seed."""
    rows = []
    for name in metric_names(models, [metric for metric in _METRICS if "rung_l" not in metric.name]):
        difference = paired_difference(values(models.get(first, {}), name), values(models.get(second, {}), name))
        if difference:
            p = "-" if math.isnan(difference.p) else f"{difference.p:.3g}"
            rows.append([f"`{name}`", str(difference.interval), p])
    if not rows:
        return []
    meaning = "Paired by seed. p is of Student's two-sided test of no difference, not corrected for the number of rows."
    return [f"### {first} minus {second}", "", meaning, "", *_markdown(["", "difference", "p"], rows), ""]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _figures(key: ExperimentKey, models: Models) -> list[str]:
    """Return the block figure of the smallest seed of each model that has one."""
    figures = [(model, name) for model, name in FIGURES if model in models]
    lines = [
        f"![{model}: one rung varies in each block, the bottom rung first](results/{key.name}-{model}-{name}.png)"
        for model, name in figures
    ]
    return [f"{', '.join(model for model, _ in figures)}, the smallest seed:", "", *lines, ""] if figures else []


def _runs(key: ExperimentKey, models: Models) -> list[str]:
    """Return the ids of the runs, and the commands that repeat them."""
    runs = [run for seeds in models.values() for run in seeds.values()]
    searches = dict.fromkeys(run.search for run in runs if run.search)
    rows = [
        [model, str(seed), f"`{run.run_id}`"] for model, seeds in models.items() for seed, run in sorted(seeds.items())
    ]
    repeat = ["All of them again:", "", *(f"    {command}" for command in searches), ""] if searches else []
    return [
        "### Runs",
        "",
        f"Every metric of every run: [{key.name}.csv](results/{key.name}.csv).",
        "",
        *repeat,
        "One of each model by itself:",
        "",
        *(f"    {next(iter(seeds.values())).command}" for seeds in models.values()),
        "",
        *_markdown(["model", "seed", "MLflow run"], rows),
        "",
    ]
