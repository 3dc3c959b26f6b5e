"""The words of a search space, its grid, and points to try it on."""

import itertools

import pytest

from jobs.search.space import Choices, Range, examples, grid, grid_size, parse_dimension


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
def test_words(text: str, dimension: Choices | Range) -> None:
    assert parse_dimension(text) == dimension


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be choices"),
        ("3,4/", "must be choices"),
        ("log:3", "must be choices"),
        ("3/4/3", "a choice twice"),
        ("2..1", "from a smaller number to a larger"),
        ("1..1", "from a smaller number to a larger"),
        ("1..nan", "from a smaller number to a larger"),
        ("1..inf", "from a smaller number to a larger"),
        ("a..b", "a range of two numbers"),
        ("1..2..3", "a range of two numbers"),
        ("log:0..1", "begin above 0"),
    ],
)
def test_wrong_words(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_dimension(text)


def test_grid_is_the_product_and_the_first_changes_fastest() -> None:
    space = {"a": parse_dimension("x/y"), "b": parse_dimension("1..3")}
    assert [tuple(point.values()) for point in grid(space)] == [
        (letter, number) for number, letter in itertools.product([1, 2, 3], ["x", "y"])
    ]
    assert grid_size(space) == 6
    assert list(grid({})) == [{}]


def test_examples_are_all_points_of_a_small_space_with_ranges_by_their_ends() -> None:
    space = {"a": parse_dimension("x/y"), "b": parse_dimension("1..9"), "c": parse_dimension("log:1e-3..0.5")}
    found = [tuple(point.values()) for point in examples(space, 100)]
    assert sorted(found) == list(itertools.product(["x", "y"], ["1", "9"], ["0.001", "0.5"]))


def test_examples_of_a_large_space_are_as_many_as_asked_for_and_name_every_choice() -> None:
    space = {name: parse_dimension("0/1/2") for name in "abcdefgh"}
    found = list(examples(space, 200))
    assert len(found) == 200
    assert all({point[name] for point in found} == {"0", "1", "2"} for name in space)
