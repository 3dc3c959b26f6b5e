"""The search space: the allowed values of each setting, as the command line spells them. Imports no Optuna."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Value = str | int | float
Values = dict[str, Value]  # values by setting: one point of the space

_LOG = "log:"


@dataclass(frozen=True)
class Choices:
    """A dimension of listed values, in command-line spelling."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A dimension of numbers from `low` to `high`, included.

    Attributes:
        log: Whether values are drawn uniformly in the logarithm.
        integer: Whether values are integers, because both ends are written as such.
    """

    low: float
    high: float
    log: bool
    integer: bool


Dimension = Choices | Range


def parse_dimension(text: str) -> Dimension:
    """Return a dimension from choices separated by slashes, or from a range `low..high` or `log:low..high`.

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> parse_dimension("18/9,9/6,6,6")
        Choices(values=('18', '9,9', '6,6,6'))
        >>> parse_dimension("log:16..1024")
        Range(low=16.0, high=1024.0, log=True, integer=True)
    """
    if ".." not in text:
        values = tuple(value.strip() for value in text.split("/"))
        if not all(values) or text.startswith(_LOG):
            raise ValueError(f"'{text}' must be choices such as 18/9,9/6,6,6 or a range such as log:1e-4..1e-2")
        if len(set(values)) < len(values):
            raise ValueError(f"'{text}' lists a choice twice")
        return Choices(values)
    log = text.startswith(_LOG)
    ends = text.removeprefix(_LOG).split("..")
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise ValueError(f"'{text}' must be a range of two numbers, such as 16..64 or log:1e-4..1e-2") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"'{text}' must be a range from a smaller number to a larger one")
    if log and low <= 0:
        raise ValueError(f"'{text}' must begin above 0, because its logarithm is drawn")
    return Range(low, high, log, all(end.strip().lstrip("+-").isdecimal() for end in ends))


def grid(space: Mapping[str, Dimension]) -> Iterator[Values]:
    """Yield all points of a space; the first setting changes fastest.

    Raises:
        ValueError: A dimension is a range of real numbers.
    """
    columns = [_list_values(dimension) for dimension in space.values()]
    for values in itertools.product(*columns[::-1]):
        yield dict(zip(space, values[::-1], strict=True))


def sample_points(space: Mapping[str, Dimension], count: int) -> Iterator[Values]:
    """Yield all points of a space if they are at most `count`, otherwise `count` random ones, the same in every call.

    A range is represented by its two ends.
    """
    ends = {
        name: Choices(
            tuple(str(int(end)) if dimension.integer else repr(end) for end in (dimension.low, dimension.high))
        )
        if isinstance(dimension, Range)
        else dimension
        for name, dimension in space.items()
    }
    if math.prod(len(dimension.values) for dimension in ends.values()) <= count:
        yield from grid(ends)
        return
    generator = random.Random(0)
    for _ in range(count):
        yield {name: generator.choice(dimension.values) for name, dimension in ends.items()}


def _list_values(dimension: Dimension) -> list[Value]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    if not dimension.integer:
        raise ValueError("a range of real numbers has no grid")
    return list(range(int(dimension.low), int(dimension.high) + 1))
