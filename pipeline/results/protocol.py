"""What is claimed of ladders, judged by runs of several seeds, and what others have published."""

import math
import re
from collections.abc import Iterable, Mapping
from statistics import fmean

from jobs.evaluation.registry import Metric
from jobs.tracking.query import TrackedRun
from pipeline.results.statistics import Interval, interval, paired_difference

Models = dict[str, dict[int, TrackedRun]]  # run by seed by model

LADDERS = ("vlae", "grown", "provlae", "axes")
STACK = "hvae"
# Datasets without color, for which the claim about mean color does not apply.
_GRAYSCALE = ("mnist", "fashion_mnist", "sprites", "dsprites", "smallnorb")
# Factors of one number that the paper's claim would put below the digit.
_SIMPLE_FACTORS = ("hue", "contrast", "luminance")
# Factors of dSprites whose mean gap is the MIG of Chen et al. 2018.
_CHEN_FACTORS = ("scale", "orientation", "x", "y")

# Results of others on the same or similar data, and the differences.
_PUBLISHED = {
    "digits": (
        "The paper shows pictures of SVHN, photographs of street numbers. Measured on its published pictures, mean "
        "color is 85 / 10 / 8 / 9 % of each rung's effect, bottom first, in the ladder of four rungs. In the HVAE of "
        "three layers one layer has 94.7 % of the variance. Differences: photographs, one training, hours on a GPU, "
        "and variances between the tiles of one picture."
    ),
    "sprites": (
        "On dSprites others report, after hundreds of thousands of steps on a GPU (FactorVAE metric / MIG / DCI "
        "disentanglement): VAE .63 / .10 / .30, beta-VAE .63 / .21 / .41, FactorVAE .82 / .43 / .74, beta-TCVAE "
        ".62 / .45 / .29, InfoGAN-CR .88 / .37 / .71. Differences: these sprites are drawn anew, close to dSprites "
        "but not the same pixels. All five factors count in `mig`, where the authors of beta-TCVAE leave shape out. "
        "The trainings here are far shorter. MIG depends on its implementation."
    ),
    "fashion_mnist": "No published work that measures rungs on Fashion-MNIST is known to us.",
}


def values(runs: Mapping[int, TrackedRun], name: str) -> dict[int, float]:
    """Return the finite values of a metric by seed, of the runs that have the metric."""
    return {seed: run.metrics[name] for seed, run in runs.items() if math.isfinite(run.metrics.get(name, math.nan))}


def metric_names(models: Models, metrics: Iterable[Metric]) -> list[str]:
    """Return the names that any run has of these metrics, in their order, and within a metric in natural order."""
    logged = sorted(
        {name for runs in models.values() for run in runs.values() for name in run.metrics},
        key=lambda name: [int(text) if text.isdecimal() else text for text in re.split(r"(\d+)", name)],
    )
    return [name for metric in metrics for name in logged if metric.pattern.fullmatch(name)]


def published(data: str) -> list[str]:
    """Return the Markdown section about published results on similar data; empty where none is recorded."""
    return ["### Published", "", _PUBLISHED[data], ""] if data in _PUBLISHED else []


def claims(data: str, models: Models) -> list[str]:
    """Judge each claim for each ladder by itself: lines of Markdown, one bullet per claim; empty without a ladder."""
    lines = []
    for name in LADDERS:
        if runs := models.get(name):
            lines += [*_factor_order(name, runs), *_complexity_order(name, runs)]
            lines += [] if data in _GRAYSCALE else _mean_color(name, runs)
    if data == "sprites":
        lines += _mig(models)
    return [*lines, ""] if lines else []


def _factor_order(name: str, runs: Mapping[int, TrackedRun]) -> list[str]:
    """Judge which simple factors sit below the digit."""
    lines = []
    for factor in _SIMPLE_FACTORS:
        gap = paired_difference(values(runs, "centroid/digit"), values(runs, f"centroid/{factor}"))
        if gap is not None:
            text = f"in {name} the {factor} lies below the digit"
            lines.append(_claim(text, gap.interval.low > 0, f"difference of centroids {gap.interval}"))
    return lines


def _complexity_order(name: str, runs: Mapping[int, TrackedRun]) -> list[str]:
    """Judge whether complex factors lie in higher rungs."""
    correlations = list(values(runs, "centroid_complexity_spearman").values())
    if len(correlations) < 2:
        return []
    mean = interval(correlations)
    order = ", the order is reversed" if mean.high < 0 else ""
    text = f"in {name} complex factors lie in higher rungs"
    return [_claim(text, mean.low > 0, f"rank correlation of centroid and complexity {mean}{order}")]


def _mean_color(name: str, runs: Mapping[int, TrackedRun]) -> list[str]:
    """Judge whether mean color is what the bottom rung changes, and the bottom rung only."""
    fractions: list[Interval] = []
    while seeds := list(values(runs, f"mean_color_share/rung_{len(fractions)}").values()):
        fractions.append(interval(seeds))
    if len(fractions) < 2:
        return []
    holds = fractions[0].mean >= 0.9 and fractions[-1].mean <= 0.1
    text = f"mean color is 90 % or more of what {name}'s bottom rung changes, 10 % or less of what its top rung changes"
    return [_claim(text, holds, " / ".join(map(_percent, fractions)))]


def _mig(models: Models) -> list[str]:
    """Compare the ladder of the highest mean MIG with published numbers."""
    migs = {name: list(values(models.get(name, {}), "mig").values()) for name in LADDERS}
    means = {name: interval(seeds) for name, seeds in migs.items() if seeds}
    if not means:
        return []
    best = max(means, key=lambda name: means[name].mean)
    mig = means[best]
    lines = [
        _claim("the best ladder has the published MIG of a flat VAE, .10", mig.mean >= 0.1, f"{best}: {mig}"),
        _claim("the best ladder has the published MIG of beta-TCVAE, .45", mig.mean >= 0.45, f"{best}: {mig}"),
    ]
    gaps = [values(models[best], f"mig/{factor}") for factor in _CHEN_FACTORS]
    if all(gap.keys() == models[best].keys() for gap in gaps):
        without_shape = interval([fmean(gap[seed] for gap in gaps) for seed in models[best]])
        text = "the best ladder has a MIG of .45 without shape, which the authors of beta-TCVAE leave out"
        lines.append(_claim(text, without_shape.mean >= 0.45, f"{best}: {without_shape}"))
    return lines


def _claim(text: str, holds: bool, evidence: str) -> str:
    return f"- {'**Holds**' if holds else '**Does not hold**'}: {text} ({evidence})."


def _percent(fraction: Interval) -> str:
    half = "" if math.isnan(fraction.half) else f" ± {100 * fraction.half:.1f}"
    return f"{100 * fraction.mean:.1f}{half} %"
