"""What is claimed of ladders and stacks, judged by runs of several seeds, and what others have published."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from jobs.tracking.query import TrackedRun
from pipeline.results.statistics import Interval, interval, paired_difference

Models = dict[str, dict[int, TrackedRun]]  # model -> seed -> run

LADDERS = ("vlae", "grown", "provlae", "axes")
STACK = "hvae"
# Always without color: of them, the claim of mean color says nothing.
_GREY = ("mnist", "fashion_mnist", "sprites", "dsprites", "smallnorb")

# By dataset: what others found where the work is the same or nearly, and what differs.
_PUBLISHED = {
    "digits": (
        "The paper shows pictures of SVHN, photographs of house numbers. Measured on its own published pictures, the "
        "share of each rung's effect that is mean color is 85 / 10 / 8 / 9 %, bottom first, for the ladder of four "
        "rungs; in the HVAE of three layers one layer alone has 94.7 % of the variance. What differs: photographs, one "
        "training, hours on a GPU, and variances between the tiles of one picture."
    ),
    "sprites": (
        "On dSprites others report, after hundreds of thousands of steps on a GPU (FactorVAE score / MIG / DCI "
        "disentanglement): VAE .63 / .10 / .30, beta-VAE .63 / .21 / .41, FactorVAE .82 / .43 / .74, beta-TCVAE "
        ".62 / .45 / .29, InfoGAN-CR .88 / .37 / .71. What differs: these sprites are drawn anew, close to dSprites "
        "but not the same pixels; all five factors count in `mig`, where beta-TCVAE's authors leave shape out; "
        "trainings are far shorter; and MIG depends on the code that computes it."
    ),
    "fashion_mnist": ("No published work that measures rungs on Fashion-MNIST is known here."),
}


# Of dSprites, those that Chen et al. 2018 take the MIG over.
_FACTORS_OF_CHEN = ("scale", "orientation", "x", "y")


def values(runs: Mapping[int, TrackedRun], name: str) -> dict[int, float]:
    """A score by seed, of the runs that have it."""
    return {seed: run.scores[name] for seed, run in runs.items() if math.isfinite(run.scores.get(name, math.nan))}


def score_names(models: Models, patterns: Sequence[str]) -> list[str]:
    """The scores of any run that fit a pattern, in the order of the patterns."""
    known = sorted({name for runs in models.values() for run in runs.values() for name in run.scores}, key=_natural)
    return [name for pattern in patterns for name in known if re.fullmatch(pattern, name)]


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def published(data: str) -> list[str]:
    """What others have found on such data, and what differs."""
    return ["### Published", "", _PUBLISHED[data], ""] if data in _PUBLISHED else []


def claims(data: str, models: Models) -> list[str]:
    """What was claimed, and whether these runs say so: for each ladder by itself."""
    lines = []
    for ladder in LADDERS:
        if runs := models.get(ladder):
            lines += [*_order(ladder, runs), *_unique(ladder, runs, models.get(STACK, {}))]
            lines += [] if data in _GREY else _color(ladder, runs)
    if data == "sprites":
        lines += _mig(models)
    return [*lines, ""] if lines else []


def _order(name: str, ladder: Mapping[int, TrackedRun]) -> list[str]:
    gap = paired_difference(values(ladder, "centroid/digit"), values(ladder, "centroid/hue"))
    if gap is None:
        return []
    holds = gap.interval.low > 0
    return [_claim(f"in {name} the hue sits below the digit", holds, f"centroids differ by {gap.interval}")]


def _unique(name: str, ladder: Mapping[int, TrackedRun], stack: Mapping[int, TrackedRun]) -> list[str]:
    found = [list(values(runs, "upper_rung_gain").values()) for runs in (stack, ladder)]
    if not all(found):
        return []
    low, high = map(interval, found)
    holds = low.mean < 0.05 and high.mean >= max(0.05, 4 * low.mean)
    text = f"{STACK}'s upper layers add under 5 % to what its bottom one tells, {name}'s more, and four times as much"
    return [_claim(text, holds, f"{_percent(low)} and {_percent(high)}")]


def _color(name: str, ladder: Mapping[int, TrackedRun]) -> list[str]:
    names = score_names({name: dict(ladder)}, (r"mean_color_share/rung_\d+",))
    shares = [interval(list(values(ladder, one).values())) for one in names]
    if len(shares) < 2:
        return []
    holds = shares[0].mean >= 0.9 and shares[-1].mean <= 0.1
    text = f"mean color is 90 % or more of what {name}'s bottom rung changes, 10 % or less of what its top rung does"
    return [_claim(text, holds, " / ".join(map(_percent, shares)))]


def _mig(models: Models) -> list[str]:
    found = {name: list(values(models.get(name, {}), "mig").values()) for name in LADDERS}
    scores = {name: interval(one) for name, one in found.items() if one}
    if not scores:
        return []
    best = max(scores, key=lambda name: scores[name].mean)
    mig = scores[best]
    lines = [
        _claim("the best ladder has the MIG that is published for a flat VAE, .10", mig.mean >= 0.1, f"{best}: {mig}"),
        _claim("it has the MIG that is published for beta-TCVAE, .45", mig.mean >= 0.45, f"{best}: {mig}"),
    ]
    gaps = [values(models[best], f"mig/{factor}") for factor in _FACTORS_OF_CHEN]
    if all(gap.keys() == models[best].keys() for gap in gaps):
        four = interval([fmean(gap[seed] for gap in gaps) for seed in models[best]])
        text = "without shape, which beta-TCVAE's authors leave out of the MIG, it has .45"
        lines.append(_claim(text, four.mean >= 0.45, f"{best}: {four}"))
    return lines


def _claim(text: str, holds: bool, seen: str) -> str:
    return f"- {'**Holds**' if holds else '**Does not hold**'}: {text} ({seen})."


def _percent(share: Interval) -> str:
    half = "" if math.isnan(share.half) else f" ± {100 * share.half:.1f}"
    return f"{100 * share.mean:.1f}{half} %"
