"""Statistics over seeds: means with intervals, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from jobs.cli import format_number

_CONFIDENCE = 0.95
_ROUNDING = 1e-9  # fraction of the mean, below which a half width is rounding


@dataclass(frozen=True)
class Interval:
    """Mean of `count` seeds and half width of its 95 % interval (Student's t); NaN with fewer than two seeds."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    def __str__(self) -> str:
        if self.half <= _ROUNDING * abs(self.mean) or math.isnan(self.half):
            mean = format_number(self.mean)
            return mean if math.isnan(self.half) else f"{mean} ± 0"
        digits = max(0, 1 - math.floor(math.log10(self.half)))
        return f"{self.mean:,.{digits}f} ± {self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one or more values and its 95 % interval: mean ± t(.975, n - 1) s / sqrt(n).

    Example:
        >>> str(interval([0.9, 0.92, 0.94]))
        '0.920 ± 0.050'
    """
    count = len(values)
    half = math.nan
    if count > 1:
        quantile = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1))
        half = quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(float(np.mean(values)), half, count)


@dataclass(frozen=True)
class Difference:
    """Paired difference over the seeds that two models share.

    Attributes:
        interval: Mean difference and its interval.
        p: p-value of Student's paired t-test, two-sided; NaN with fewer than two seeds or without variance.
    """

    interval: Interval
    p: float


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Subtract the second model's values from the first's, seed by seed; return None without a shared seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    p = math.nan
    if len(seeds) > 1 and float(np.std(differences)) > 0:
        p = float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(interval(differences), p)
