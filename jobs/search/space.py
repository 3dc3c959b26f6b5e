"""The space of a search: what each setting may be, as the command line spells it. Light: no optuna."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Value = str | int | float
Values = dict[str, Value]  # dotted setting -> value: one point of the space

_LOG = "log:"


@dataclass(frozen=True)
class Choices:
    """One of these, each as the command line spells it."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Any number from `low` to `high`, both included; a whole number if both ends are written as such."""

    low: float
    high: float
    log: bool  # uniform in the logarithm
    integer: bool


Dimension = Choices | Range


def parse_dimension(text: str) -> Dimension:
    """Read `18/9,9/6,6,6` (choices), `16..64` (whole numbers), `.5..4.0` (numbers), `log:1e-4..1e-2`.

    Raises:
        ValueError: it is none of these.
    """
    if ".." not in text:
        values = tuple(part.strip() for part in text.split("/"))
        if not all(values) or text.startswith(_LOG):
            raise ValueError(f"'{text}' must be choices such as 18/9,9/6,6,6 or a range such as log:1e-4..1e-2")
        if len(set(values)) < len(values):
            raise ValueError(f"'{text}' has a choice twice")
        return Choices(values)
    log = text.startswith(_LOG)
    ends = text.removeprefix(_LOG).split("..")
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise ValueError(f"'{text}' must be a range of two numbers, such as 16..64 or log:1e-4..1e-2") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"'{text}' must go from a smaller number to a larger one")
    if log and low <= 0:
        raise ValueError(f"'{text}' must begin above 0, since its logarithm is drawn")
    return Range(low, high, log, all(end.strip().lstrip("+-").isdecimal() for end in ends))


def grid(space: Mapping[str, Dimension]) -> Iterator[Values]:
    """All points of a space without ranges of real numbers, the first setting changing fastest."""
    columns = [_listed(dimension) for dimension in space.values()]
    for values in itertools.product(*columns[::-1]):
        yield dict(zip(space, values[::-1], strict=True))


def grid_size(space: Mapping[str, Dimension]) -> int:
    """How many points that are."""
    return math.prod(len(_listed(dimension)) for dimension in space.values())


def examples(space: Mapping[str, Dimension], count: int) -> Iterator[Values]:
    """Points to try a space on: all of it if that is few, else drawn; ranges are represented by their two ends."""
    few = {name: Choices(tuple(_ends(one))) if isinstance(one, Range) else one for name, one in space.items()}
    if grid_size(few) <= count:
        yield from grid(few)
        return
    generator = random.Random(0)
    for _ in range(count):
        yield {name: generator.choice(_listed(dimension)) for name, dimension in few.items()}


def _ends(one: Range) -> list[str]:
    return [f"{int(end)}" if one.integer else repr(end) for end in (one.low, one.high)]


def _listed(dimension: Dimension) -> list[Value]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    if not dimension.integer:
        raise ValueError("a range of real numbers has no grid")
    return list(range(int(dimension.low), int(dimension.high) + 1))
