"""Factors of any source: names that can be part of metric names, and the factors that metrics use."""

import pytest

from jobs.data.sources.base import Factor, factor_name_faults, identifier_notes, select_factors
from jobs.errors import UserError

HUE, ORDER, SERIAL = (Factor(name, tuple(range(count))) for name, count in (("hue", 4), ("order", 50), ("serial", 51)))


def test_factor_name_faults_names_each_invalid_name() -> None:
    assert factor_name_faults(["hue", "object hue", "5_o_Clock-Shadow", "v1.2", "_", "a" * 100, "rung_x", "mean"]) == {}
    invalid = ["", ".", "..", ".a", "-", " a", "a ", "a/b", "a\n", "a\x1bb", "größe", "a|b", "$x$", "a" * 101]
    assert list(factor_name_faults(invalid)) == invalid
    assert list(factor_name_faults(["rung_0", "Rung_12", "rung"])) == ["rung_0", "Rung_12"]
    assert list(factor_name_faults(["Hue", "size", "hue"])) == ["hue"]


def test_select_factors_leaves_out_identifiers() -> None:
    """An identifier has more values than half the samples; naming it selects it."""
    factors = (SERIAL, HUE, ORDER)
    assert select_factors(factors, 100) == [HUE, ORDER]
    assert select_factors(factors, 102) == [SERIAL, HUE, ORDER]
    assert select_factors(factors, 100, ["hue", "serial"]) == [SERIAL, HUE]
    (note,) = identifier_notes(factors, 100)
    assert note.startswith("factor serial:")
    assert identifier_notes(factors, 102) == identifier_notes(factors, 100, ["hue"]) == []


def test_select_factors_unknown_name_error_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data\.factors=huee: .*'hue'"):
        select_factors([HUE, SERIAL], 100, ["huee"])
    with pytest.raises(UserError, match=r"data\.factors=color: .*hue, serial"):
        select_factors([HUE, SERIAL], 100, ["color"])


@pytest.mark.parametrize("names", [("rung_0",), ("..",), ("Hue", "hue"), ("a" * 101,)])
def test_select_factors_invalid_name_of_any_source_raises(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"{names[-1][:100]}'"):
        select_factors([Factor(name, (0, 1)) for name in names], 100)
