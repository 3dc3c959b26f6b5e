"""Dimensions of a search space, its grid, and points that represent it."""

import itertools
import re

import pytest

from jobs.search.space import Choices, Range, grid, parse_dimension, sample_points


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("18/9,9/6,6,6", Choices(("18", "9,9", "6,6,6"))),
        ("true/false", Choices(("true", "false"))),
        ("5", Choices(("5",))),
        ("16..64", Range(16, 64, log=False, integer=True)),
        ("log:16..1024", Range(16, 1024, log=True, integer=True)),
        (".5..4.0", Range(0.5, 4, log=False, integer=False)),
        ("1..4.0", Range(1, 4, log=False, integer=False)),
        ("log:1e-4..1e-2", Range(1e-4, 1e-2, log=True, integer=False)),
        ("-3..3", Range(-3, 3, log=False, integer=True)),
    ],
)
def test_parse_dimension_reads_choices_and_ranges(text: str, dimension: Choices | Range) -> None:
    """A text with two dots is a range, and any other is a list of choices."""
    assert parse_dimension(text) == dimension


@pytest.mark.parametrize(
    "text",
    ["", "3,4/", "log:3", "3/4/3", "2..1", "1..1", "1..nan", "1..inf", "a..b", "1..2..3", "log:0..1"],
)
def test_parse_dimension_refuses_invalid_text(text: str) -> None:
    """The message quotes the text."""
    with pytest.raises(ValueError, match=re.escape(f"'{text}'")):
        parse_dimension(text)


def test_grid_is_ordered_product() -> None:
    """The grid is the product of the dimensions, and the first setting changes fastest."""
    space = {"a": parse_dimension("x/y"), "b": parse_dimension("1..3")}
    assert [tuple(point.values()) for point in grid(space)] == [
        (letter, number) for number, letter in itertools.product([1, 2, 3], ["x", "y"])
    ]
    assert list(grid({})) == [{}]


def test_sample_points_small_space_lists_all() -> None:
    """All points of a small space are listed, with the ends of each range."""
    space = {"a": parse_dimension("x/y"), "b": parse_dimension("1..9"), "c": parse_dimension("log:1e-3..0.5")}
    points = [tuple(point.values()) for point in sample_points(space, 100)]
    assert sorted(points) == list(itertools.product(["x", "y"], ["1", "9"], ["0.001", "0.5"]))


def test_sample_points_large_space_covers_choices() -> None:
    """A large space gives `count` points, with every choice of every setting."""
    space = {name: parse_dimension("0/1/2") for name in "abcdefgh"}
    points = list(sample_points(space, 200))
    assert len(points) == 200
    assert all({point[name] for point in points} == {"0", "1", "2"} for name in space)
