"""What several seeds of several models came to, as a page of Markdown."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence

from jobs.summary import Interval, interval, paired_difference
from jobs.tracked_runs import TrackedRun

Models = dict[str, dict[int, TrackedRun]]  # model -> seed -> run

_MODELS = ("vlae", "provlae", "hvae", "lvae", "vae")
_PRESET, _PREFIX = "preset", "claim-"
FIGURES = (("vlae", "blocks"), ("hvae", "blocks"))
_LADDER, _STACK = "vlae", "hvae"

# Title, scores as patterns, what the numbers mean.
_TABLES = (
    ("Likelihood and rates", ("elbo", "iw_bound", "bits_per_dim", r"kl/rung_\d+", r"active_units/rung_\d+"),
     "Nats per image of the test split; the bound with 64 importance samples."),
    ("Where factors sit", (r"centroid/\w+",),
     "Level centroid: 0 is the bottom rung, 1 the top one."),
    ("Hierarchy", ("rung_compactness", "rung_modularity", "centroid_complexity", "upper_unique_share"),
     "Of 1; the last is the share of what all rungs tell that is lost when only the bottom rung is kept."),
    ("Colour and class", (r"colour_share/rung_\d+", r"class_flip_rate/rung_\d+"),
     "Share of a rung's total effect on the image that is mean colour; how often its new noise flips the class."),
    ("Gibbs chains on the bottom rung", (r"gibbs_distance/.+",),
     "Frechet distance to test images."),
    ("Disentanglement", ("mig", "mig_sup", "dci_disentanglement", "dci_completeness", "dci_informativeness",
                         "infom", "infoc", "infoe", "factor_vae"),
     "Of the means of all rungs together."),
)  # fmt: skip


def compared(runs: Sequence[TrackedRun]) -> dict[str, Models]:
    """Dataset -> model -> seed -> run: of each the newest, if it has the data and the steps of the newest of all.

    Args:
        runs: the newest first.
    """
    alike: dict[str, tuple[str, str]] = {}
    found: dict[str, Models] = {}
    for run in runs:
        name, data = run.values.get(_PRESET, ""), run.params.get("data", "")
        key = run.data_fingerprint, run.params.get("train.steps", "")
        if name.startswith(_PREFIX) and alike.setdefault(data, key) == key:
            seeds = found.setdefault(data, {}).setdefault(name.removeprefix(_PREFIX), {})
            seeds.setdefault(int(run.params["seed"]), run)
    return {data: {model: found[data][model] for model in _sorted(found[data])} for data in sorted(found)}


def _sorted(models: Models) -> list[str]:
    return sorted(models, key=lambda model: (_MODELS.index(model) if model in _MODELS else len(_MODELS), model))


def page(datasets: Mapping[str, Models]) -> str:
    """The whole page."""
    lines = [
        "# Results",
        "",
        "Written by `python -m pipeline.results` from MLflow's runs of `preset=claim`; nothing is typed. A cell is "
        "the mean over seeds and the half width of its 95 % interval (Student's t), the number of seeds at the head of "
        "its column. [metrics.md](metrics.md) defines each score.",
        "",
    ]
    for data, models in datasets.items():
        lines += [f"## {data}", "", *_claims(models), *_pictures(data, models)]
        for title, patterns, meaning in _TABLES:
            lines += _table(title, meaning, _names(models, patterns), models)
        lines += [*_tests(models), *_runs(models)]
    return "\n".join(lines) + "\n"


def values(runs: Mapping[int, TrackedRun], name: str) -> dict[int, float]:
    """A score by seed, of the runs that have it."""
    return {seed: run.scores[name] for seed, run in runs.items() if math.isfinite(run.scores.get(name, math.nan))}


def _names(models: Models, patterns: Sequence[str]) -> list[str]:
    """The scores of any run that fit a pattern, in the order of the patterns."""
    known = sorted({name for runs in models.values() for run in runs.values() for name in run.scores}, key=_natural)
    return [name for pattern in patterns for name in known if re.fullmatch(pattern, name)]


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


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


def _claims(models: Models) -> list[str]:
    """What was claimed, and whether these runs say so."""
    ladder, stack = models.get(_LADDER, {}), models.get(_STACK, {})
    lines = []
    hue, digit = values(ladder, "centroid/hue"), values(ladder, "centroid/digit")
    if gap := paired_difference(digit, hue):
        lines.append(_claim("in the ladder the hue sits below the digit", gap.interval.low > 0,
                            f"centroids differ by {gap.interval}"))  # fmt: skip
    shares = [
        interval(list(found.values())) for runs in (stack, ladder) if (found := values(runs, "upper_unique_share"))
    ]
    if len(shares) == 2:
        low, high = shares
        lines.append(_claim("the stack's upper layers add under 5 %, the ladder's four times as much",
                            low.mean < 0.05 and high.mean >= 4 * low.mean, f"{low} and {high}"))  # fmt: skip
    colour = [
        interval(list(values(ladder, name).values())) for name in _names({_LADDER: ladder}, (r"colour_share/rung_\d+",))
    ]
    if len(colour) > 1:
        lines.append(_claim("colour is 90 % or more of what the bottom rung changes, 10 % or less of the top one's",
                            colour[0].mean >= 0.9 and colour[-1].mean <= 0.1,
                            " / ".join(map(_percent, colour))))  # fmt: skip
    return [*lines, ""] if lines else []


def _claim(text: str, holds: bool, seen: str) -> str:
    return f"- {'**Holds**' if holds else '**Does not hold**'}: {text} ({seen})."


def _percent(share: Interval) -> str:
    half = "" if math.isnan(share.half) else f" ± {100 * share.half:.1f}"
    return f"{100 * share.mean:.1f}{half} %"


def _pictures(data: str, models: Models) -> list[str]:
    shown = [(model, name) for model, name in FIGURES if model in models]
    lines = [f"![{model}: one rung varies in each block](results-{data}-{model}-{name}.png)" for model, name in shown]
    return [f"{' and '.join(model for model, _ in shown)}, the smallest seed:", "", *lines, ""] if shown else []


def _tests(models: Models) -> list[str]:
    """Ladder minus stack, seed by seed."""
    ladder, stack = models.get(_LADDER, {}), models.get(_STACK, {})
    names = _names(models, [pattern for _, patterns, _ in _TABLES for pattern in patterns if "rung_\\" not in pattern])
    rows = []
    for name in names:
        found = paired_difference(values(ladder, name), values(stack, name))
        if found:
            rows.append([f"`{name}`", str(found.interval), "-" if math.isnan(found.p) else f"{found.p:.2g}"])
    if not rows:
        return []
    meaning = "Paired by seed; p is Student's, two-sided, of no difference, and not corrected for the number of rows."
    return ["### Ladder minus stack", "", meaning, "", *_markdown(["", "difference", "p"], rows), ""]


def _anywhere(command: str) -> str:
    """A command without the folder that its run happened to be in."""
    return shlex.join(word for word in shlex.split(command) if not word.startswith("workspace="))


def _runs(models: Models) -> list[str]:
    """Which runs the numbers are from, and the commands that repeat them."""
    rows = [
        [model, str(seed), f"`{run.run_id}`"] for model, runs in models.items() for seed, run in sorted(runs.items())
    ]
    commands = [_anywhere(next(iter(runs.values())).command) for runs in models.values()]
    return [
        "### Runs", "", *_markdown(["model", "seed", "MLflow run"], rows), "",
        "One of each model by itself:", "", *(f"    {command}" for command in commands), "",
    ]  # fmt: skip
