"""What every data source shares: its settings, and its reader of numbered samples with factors.

A dataset is one file of this folder: a settings class, listed in `jobs.data.sources.DataConfig`, whose `open` returns
the reader, a `Source`.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field

from jobs.config import EXECUTION, AbsolutePath
from jobs.data.sampling import permute
from jobs.errors import DecodeError, UserError, printable, suggestion
from vlae.config import SettingsModel, split_commas

_MAX_NAME = 100  # characters of a factor's name; MLflow permits 250 in a metric's name, which has other parts too
_FACTOR_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_. -]*[A-Za-z0-9_.-])?")
_RUNG_NAME = re.compile(r"rung_\d+", re.IGNORECASE)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def parse_none(value: Any) -> Any:
    """Turn the command line's `none` into None."""
    return None if value == "none" else value


def parse_integer(value: Any) -> Any:
    """Turn the command line's `3` into an integer for a `Literal` field, which pydantic does not convert."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


ImageSize = Annotated[int, Field(ge=8, le=1024, multiple_of=4)]
Channels = Annotated[Literal[1, 3], BeforeValidator(parse_integer)]
BitDepth = Annotated[
    int,
    Field(
        ge=0, le=16, description="bits that 16-bit images use; 0: all, and an image that uses fewer than 15 is an error"
    ),
]


def root_field(dataset: str, files: str) -> Any:
    """Return the field of a folder of published files, named in `--help`, by default `datasets/DATASET`."""
    return Field(
        Path("datasets") / dataset,
        validate_default=True,
        description=f"folder with {files}",
        json_schema_extra=EXECUTION,
    )


class BaseDataConfig(SettingsModel):
    """How a dataset is split, cut into shards and cached."""

    validation_fraction: float = Field(
        0.05, ge=0, lt=0.5, description="fraction of the samples, by hash of the key, kept for validation"
    )
    test_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="fraction of the samples kept for testing, if the publisher has no test split"
    )
    samples_per_task: int = Field(
        4096, ge=1, description="samples per shard task, which writes at most one tar per split"
    )
    encoding: Literal["npy", "png"] = Field(
        "npy", description="image encoding in the tars: npy is raw and fast, png is two to ten times smaller"
    )
    on_error: Literal["error", "skip"] = Field(
        "error",
        description="images of your own files that cannot be decoded: error names them and ends the stage; "
        "skip leaves them out and lists them in the manifest",
        json_schema_extra=EXECUTION,
    )
    cache_dir: Annotated[AbsolutePath | None, BeforeValidator(parse_none)] = Field(
        None,
        description="folder for node-local copies of shards on S3 or in PNG; none: in the workspace",
        json_schema_extra=EXECUTION,
    )
    cache_bytes: int = Field(
        100 * 2**30,
        ge=2**20,
        description="maximum size of these copies in bytes; the least recently used are removed",
        json_schema_extra=EXECUTION,
    )

    # Not part of the identity of shards and trainings, but of evaluations (`evaluate_key`) and searches.
    factors: Annotated[
        tuple[str, ...], BeforeValidator(split_commas), AfterValidator(lambda names: tuple(sorted({*names} - {""})))
    ] = Field(
        (),
        description="factors that metrics use; empty: all except those with more values than half the samples",
        json_schema_extra=EXECUTION,
    )

    def locate(self, downloads: Path, *, fetch: bool) -> Self:  # noqa: ARG002
        """Return these settings, with a `root` that holds the files if the dataset may be downloaded.

        Args:
            downloads: Folder for downloaded files, one folder per dataset.
            fetch: Whether missing files may be downloaded now.

        Raises:
            UserError: Files are missing or cannot be downloaded.
        """
        return self

    def open(self) -> "Source":
        """Return the reader of the dataset. Missing files are an error of its first use."""
        raise NotImplementedError


class BaseFilesConfig(BaseDataConfig):
    """A dataset that its publisher provides as files."""

    root: AbsolutePath = Field(..., description="folder with the published files", json_schema_extra=EXECUTION)


@dataclass(frozen=True)
class Factor:
    """A factor or label with finitely many values. A sample has a value's index.

    The name is part of metric names, so `factor_name_faults` restricts it.
    """

    name: str
    values: tuple[str | int | float, ...]  # int, because pydantic would turn 3 into 3.0


def factor_name_faults(names: Iterable[str]) -> dict[str, str]:
    """Return the fault of each invalid factor name as a predicate, such as `has more than 100 characters`."""
    faults: dict[str, str] = {}
    unique: dict[str, str] = {}  # by lower case, because MLflow's databases on MySQL ignore the case of metric names
    for name in names:
        if len(name) > _MAX_NAME:
            faults[name] = f"has more than {_MAX_NAME} characters"
        elif not _FACTOR_NAME.fullmatch(name):
            faults[name] = "must be ASCII letters, digits, _, dots, - and inner spaces, and not begin with dot or -"
        elif _RUNG_NAME.fullmatch(name):
            faults[name] = "would be confused with a rung in the names of metrics"
        elif name.lower() in unique:
            faults[name] = f"repeats {unique[name.lower()]!r}, as upper and lower case are not distinguished"
        unique.setdefault(name.lower(), name)
    return faults


def select_factors(factors: Sequence[Factor], num_samples: int, names: Collection[str] = ()) -> list[Factor]:
    """Return the factors that metrics use, in their order.

    Args:
        factors: All factors of a dataset.
        num_samples: Number of its samples.
        names: Names to select (setting `data.factors`). Empty: all except identifiers, which have more values than half
            the number of samples. No code can predict identifiers, so they would only lower the means over factors.

    Raises:
        UserError: A factor's name cannot be part of a metric's name, or a name to select is unknown.
    """
    all_names = [factor.name for factor in factors]
    for name, fault in factor_name_faults(all_names).items():
        raise UserError(f"data: the factor {name[:_MAX_NAME]!r} {fault}. Rename it in the source of the data.")
    for name in names:
        if name not in all_names:
            hint = suggestion(name, all_names, f"Choose from its factors: {', '.join(all_names) or 'none'}.")
            raise UserError(f"data.factors={name}: not a factor of this dataset. {hint}")
    if names:
        return [factor for factor in factors if factor.name in names]
    return [factor for factor in factors if 2 * len(factor.values) <= num_samples]


def identifier_notes(factors: Sequence[Factor], num_samples: int, names: Collection[str] = ()) -> list[str]:
    """Return a sentence per factor that `select_factors` leaves out as an identifier."""
    selected = select_factors(factors, num_samples, names)
    return [
        f"factor {factor.name}: no metric uses it, because it has {len(factor.values):,} values in {num_samples:,} "
        "samples. Set data.factors= to the factors to use."
        for factor in factors
        if factor not in selected and not names
    ]


@dataclass(slots=True)  # not frozen, because that triples the time to make one, and there are millions
class Sample:
    """One image with its labels.

    Attributes:
        key: Name of the sample, unique in the dataset, without dot and slash, because it becomes a tar member name.
        image: Pixels, (height, width, channels) uint8. The reader must not change them later.
        factors: Index of the value of each factor, by factor name.
        split: The publisher's split, or None: the hash of the key decides.
    """

    key: str
    image: NDArray[np.uint8]
    factors: dict[str, int]
    split: Split | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be decoded: its name below the folder of the data and the reason, escaped for messages."""

    name: str
    reason: str

    @classmethod
    def from_error(cls, error: DecodeError, name: str) -> Self:
        """Return the record of a sample, with the first sentence of its error as the reason."""
        return cls(printable(name), str(error).rpartition(". ")[0] or str(error))


class Source(ABC):
    """A dataset as its publisher or owner provides it: square images of 3 channels (color) or 1 (gray).

    Sources are small and picklable, because every shard task gets a copy and reads its own range. A missing or invalid
    file is a `UserError` that names the file and the fix, also if it has changed since it was validated.
    """

    image_size: int
    channels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.image_size, self.image_size, self.channels

    @property
    @abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """The known factors, in the order of the columns that the loader returns."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Number of samples."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes whenever the content may have changed; equal on every machine with the same files."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of files, or members of tars, that are not read as samples, by reason."""
        return {}

    def excluding(self, folders: Sequence[Path]) -> Self:  # noqa: ARG002
        """Return this source without files in folders that the command itself writes."""
        return self

    @property
    def sequential(self) -> bool:
        """Whether `read` passes over all samples before `start`, as in a compressed stream. Long ranges pay then."""
        return False

    def validate(self) -> list[str]:
        """Check the files once before they are read, and return warnings, such as a hash unlike the published one."""
        return []

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Yield samples start..stop-1 in order, few in memory at a time; a `Skipped` for each undecodable one."""


@dataclass(frozen=True)
class DrawnGrid(Source):
    """Drawn images of all combinations of the factor values, the last factor fastest, or of a random subset of them.

    Attributes:
        num_images: Size of the random subset; 0: all combinations, in order.
        revision: Number to raise when a change of the code changes the pixels.
    """

    num_images: int
    revision: ClassVar[int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each factor."""
        return tuple(len(factor.values) for factor in self.factors)

    @property
    def batch_size(self) -> int:
        """Images that are drawn together."""
        return 256

    @property
    def num_samples(self) -> int:
        return self.num_images or math.prod(self.sizes)

    @property
    def fingerprint(self) -> str:
        return f"{self!r}-{self.revision}"

    @abstractmethod
    def draw(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (N, height, width, channels) uint8 for (N, K) indices into the values of the factors."""

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        names, total = [factor.name for factor in self.factors], math.prod(self.sizes)
        for begin in range(start, stop, self.batch_size):
            ids = np.arange(begin, min(begin + self.batch_size, stop))
            if self.num_images:
                ids = permute(ids, total, 0)
            indices = np.stack(np.unravel_index(ids, self.sizes), axis=1)
            for sample_id, row, image in zip(ids, indices.tolist(), self.draw(indices), strict=True):
                yield Sample(f"{sample_id:06d}", image, dict(zip(names, row, strict=True)))


def even_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return evenly spaced values from `low` to `high`, rounded to six decimals."""
    return tuple(np.linspace(low, high, count).round(6).tolist())


def ranges_by_file(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the index of each file that holds samples start..stop-1, and its first and last-plus-one sample of them.

    Example:
        >>> list(ranges_by_file([3, 2, 4], 1, 6))
        [(0, 1, 3), (1, 0, 2), (2, 0, 1)]
    """
    first = 0
    for index, count in enumerate(counts):
        begin, end = max(start - first, 0), min(stop - first, count)
        if begin < end:
            yield index, begin, end
        first += count
