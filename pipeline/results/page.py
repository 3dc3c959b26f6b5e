"""What several seeds of several models came to, as a page of Markdown."""

import math
from collections.abc import Mapping, Sequence

from jobs.tracking.query import TrackedRun
from pipeline.results.protocol import LADDERS, STACK, Models, claims, published, score_names, values
from pipeline.results.statistics import interval, paired_difference
from pipeline.results.table import ExperimentKey

_MODELS = (*LADDERS, STACK, "lvae", "vae")
_PRESET, _PREFIX = "preset", "claim-"
# Held against each other, seed by seed.
_PAIRS = (*((ladder, STACK) for ladder in LADDERS), ("axes", "provlae"))
FIGURES = tuple((model, "blocks") for model in ("vlae", "grown", "hvae"))

# Title, scores as patterns, what the numbers mean.
_TABLES = (
    ("Likelihood and rates", ("elbo", "iwae_bound", "bits_per_dim", r"kl/rung_\d+", r"active_units/rung_\d+"),
     "Nats per image of the test split; the bound with 64 importance samples."),
    ("Where factors sit", (r"centroid/.+",),
     "Level centroid: 0 is the bottom rung, 1 the top one."),
    ("Hierarchy", ("rung_compactness", "rung_modularity", "centroid_complexity_spearman", "upper_rung_gain"),
     "Of 1; the last is the share of what all rungs tell that is lost when only the bottom rung is kept."),
    ("Color and class", (r"mean_color_share/rung_\d+", r"class_flip_rate/rung_\d+", "classifier_accuracy"),
     "Share of a rung's total effect on the image that is mean color, or mean gray of gray images; how often its new "
     "noise flips the class, as a classifier of that accuracy sees it. Other machines train other classifiers."),
    ("Gibbs chains on the bottom rung", (r"gibbs_distance/.+",),
     "Frechet distance to test images."),
    ("Disentanglement", ("mig", r"mig/(?!rung_).+", "mig_ica", "mig_sup", "dci_disentanglement", "dci_completeness",
                         "dci_informativeness", "infom", "infoc", "infoe", "factor_vae"),
     "Of the means of all rungs together; `mig/` of single factors, `mig_ica` after each rung is turned by ICA."),
)  # fmt: skip


def group_by_experiment(runs: Sequence[TrackedRun]) -> dict[ExperimentKey, Models]:
    """Dataset and steps -> model -> seed -> run: of each the newest.

    Of a dataset and number of steps only runs on the data of the newest, with all settings but the seed of the newest
    of their model.

    Args:
        runs: the newest first.
    """
    data: dict[ExperimentKey, str] = {}
    alike: dict[tuple[ExperimentKey, str], object] = {}
    found: dict[ExperimentKey, Models] = {}
    for run in runs:
        name = run.values.get(_PRESET, "")
        if not name.startswith(_PREFIX):
            continue
        one = ExperimentKey.of(run)
        settings = {param: value for param, value in run.params.items() if param != "seed"}
        same_data = data.setdefault(one, run.data_fingerprint) == run.data_fingerprint
        if same_data and alike.setdefault((one, name), settings) == settings:
            seeds = found.setdefault(one, {}).setdefault(name.removeprefix(_PREFIX), {})
            seeds.setdefault(int(run.params["seed"]), run)
    return {one: {model: found[one][model] for model in _sorted(found[one])} for one in sorted(found)}


def _sorted(models: Models) -> list[str]:
    return sorted(models, key=lambda model: (_MODELS.index(model) if model in _MODELS else len(_MODELS), model))


def page(comparisons: Mapping[ExperimentKey, Models]) -> str:
    """The whole page."""
    lines = [
        "# Results",
        "",
        "Written by `python -m pipeline.results` from MLflow's runs of `preset=claim`, by way of the tables in "
        "results/; nothing is typed but what "
        "others have published. A cell is the mean over seeds and the half width of its 95 % interval (Student's t), "
        "the number of seeds at the head of its column. [metrics.md](metrics.md) defines each score. Each part begins "
        "with what is claimed: an order of centroids holds where its interval leaves out 0, shares and MIG are judged "
        "by their means. It ends "
        "with its runs, by their ids, and the commands that repeat them.",
        "",
    ]
    for one, models in comparisons.items():
        lines += [f"## {one.data}, {one.steps:,} steps", "", *claims(one.data, models), *_pictures(one, models)]
        for title, patterns, meaning in _TABLES:
            lines += _table(title, meaning, score_names(models, patterns), models)
        lines += [
            *(line for pair in _PAIRS for line in _tests(models, *pair)),
            *published(one.data),
            *_runs(one, models),
        ]
    return "\n".join(lines) + "\n"


def _table(title: str, meaning: str, names: Sequence[str], models: Models) -> list[str]:
    if not names:
        return []
    head = [f"{model} ({len(runs)})" for model, runs in models.items()]
    rows = [[f"`{name}`", *(_cell(values(runs, name), len(runs)) for runs in models.values())] for name in names]
    return [f"### {title}", "", meaning, "", *_markdown(["", *head], rows), ""]


def _cell(found: Mapping[int, float], seeds: int) -> str:
    if not found:
        return "-"
    fewer = f" (of {len(found)} seeds)" if len(found) < seeds else ""
    return f"{interval(list(found.values()))}{fewer}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _pictures(one: ExperimentKey, models: Models) -> list[str]:
    shown = [(model, name) for model, name in FIGURES if model in models]
    lines = [
        f"![{model}: one rung varies in each block, the bottom one first](results/{one.name}-{model}-{name}.png)"
        for model, name in shown
    ]
    return [f"{', '.join(model for model, _ in shown)}, the smallest seed:", "", *lines, ""] if shown else []


def _tests(models: Models, this: str, that: str) -> list[str]:
    """One model minus another, seed by seed."""
    wanted = [pattern for _, patterns, _ in _TABLES for pattern in patterns if "rung_\\" not in pattern]
    names = score_names(models, wanted)
    rows = []
    for name in names:
        found = paired_difference(values(models.get(this, {}), name), values(models.get(that, {}), name))
        if found:
            rows.append([f"`{name}`", str(found.interval), "-" if math.isnan(found.p) else f"{found.p:.3g}"])
    if not rows:
        return []
    meaning = "Paired by seed; p is Student's, two-sided, of no difference, and not corrected for the number of rows."
    return [f"### {this} minus {that}", "", meaning, "", *_markdown(["", "difference", "p"], rows), ""]


def _runs(one: ExperimentKey, models: Models) -> list[str]:
    """Which runs the numbers are from, and the commands that repeat them."""
    rows = [
        [model, str(seed), f"`{run.run_id}`"] for model, runs in models.items() for seed, run in sorted(runs.items())
    ]
    first = [next(iter(runs.values())) for runs in models.values()]
    searches = dict.fromkeys(run.search for runs in models.values() for run in runs.values() if run.search)
    again = [" All of them again:", "", *(f"    {command}" for command in searches)] if searches else [""]
    return [
        "### Runs",
        "",
        f"Every score of every run: [{one.name}.csv](results/{one.name}.csv).{again[0]}",
        *again[1:],
        "",
        "One of each model by itself:",
        "",
        *(f"    {run.command}" for run in first),
        "",
        *_markdown(["model", "seed", "MLflow run"], rows),
        "",
    ]
