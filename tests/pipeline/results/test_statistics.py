"""Means, intervals and paired tests against scipy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.results.statistics import interval, paired_difference


def test_interval_matches_scipy_t() -> None:
    values = [1.0, 2.0, 4.0, 4.5, 3.0]
    result = interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))
    assert result.count == 5
    assert interval([1.0, 3.0]).half == pytest.approx(12.7062, abs=1e-4)  # t of one degree of freedom


def test_interval_covers_the_mean_at_95_percent() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    covered = [result.low <= 0 <= result.high for result in map(interval, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_interval_one_seed_is_nan() -> None:
    assert math.isnan(interval([2.0]).half)
    assert str(interval([2.0])) == "2"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([-14427.7, -14430.2, -14425.1], "-14,427.7 ± 6.3"),
        ([0.9, 0.92, 0.94], "0.920 ± 0.050"),
        ([1.0, 1.0], "1 ± 0"),
        ([-0.8944271909999159, -0.894427190999916], "-0.8944 ± 0"),
        ([-14427.7], "-14,428"),
    ],
)
def test_interval_text_has_significant_digits(values: list[float], text: str) -> None:
    assert str(interval(values)) == text


def test_paired_difference_matches_scipy() -> None:
    first, second = {0: 3.0, 1: 2.5, 2: 4.0, 7: 9.0}, {0: 1.0, 1: 2.0, 2: 2.2, 5: 0.0}
    result = paired_difference(first, second)
    assert result is not None
    expected = stats.ttest_rel([3.0, 2.5, 4.0], [1.0, 2.0, 2.2])
    assert result.p == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert (result.interval.low, result.interval.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert paired_difference(first, {9: 1.0}) is None
    single = paired_difference({0: 1.0}, {0: 0.0})
    assert single is not None
    assert math.isnan(single.p)
