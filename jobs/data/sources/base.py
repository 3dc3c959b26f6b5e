"""What a data source offers: numbered samples with factors, readable in any range and order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Factor:
    """A generative factor or label with finitely many values; samples carry the index of theirs."""

    name: str
    values: tuple[str | float, ...]


@dataclass(slots=True)  # not frozen: there are millions, and that would triple what each costs to make
class Sample:
    """One image with what is known of it."""

    key: str  # unique in the dataset; no dot, no slash: it becomes a member name
    image: NDArray[np.uint8]  # (height, width, channels); not to be changed once it was given away
    factors: dict[str, int]  # index into the values of each factor
    split: Split | None = None  # the publisher's own split, or None: the hash of the key decides


class Source(Protocol):
    """A dataset as its publisher or its owner has it.

    Sources are small and picklable: each shard task gets one and reads its own range. What they cannot
    find or read is a UserError that names the file and the mend.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        ...

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The known factors, in the order of the columns that the loader gives."""
        ...

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the content may have changed; cheap, and the same on every machine with the same files."""
        ...

    @property
    def sequential(self) -> bool:
        """Whether `read` has to pass over all samples before `start` (a compressed stream), so that long runs pay."""
        ...

    def check(self) -> list[str]:
        """Verify the files, once, before they are read.

        Returns:
            Remarks for the user, such as a hash that is not the published one.

        Raises:
            UserError: a file is missing or not of the format.
        """
        ...

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples start..stop-1, a few at a time in memory."""
        ...
