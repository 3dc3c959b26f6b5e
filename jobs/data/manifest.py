"""The names and formats of a sharded dataset, shared by its writer and its reader.

manifest.json               the whole dataset; written last, so that without it there is no dataset
train-00003.tar             samples `KEY.json` (factors) and `KEY.npy` or `KEY.png`, a plain WebDataset tar
train-00003.index.npy       int64 (n, 2 + K): offset and length of the pixels (of the PNG file), then the factors
task-00003.json             shards and skipped samples of task 3, so that an interrupted job does not repeat it
"""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jobs.data.sources.base import Factor, Skipped, Split, select_factors
from jobs.errors import CorruptedError, UserError, format_names
from jobs.storage.base import Storage

FORMAT = 2
MANIFEST = "manifest.json"
_TASK_FILE = re.compile(r"task-\d{5,}\.json")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # it becomes the name of a file in the cache
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Shard:
    """One tar of one split: its name without .tar, and size and hash of the tar.

    `pixels_sha256` is the hash of the decoded images one after the other, if the tar holds them as PNG, else None.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    # The pattern keeps folders out of the name, because it becomes a path.
    name: Annotated[str, Field(pattern=r"^(train|validation|test)-[0-9]{5,}$")]
    split: Split
    num_samples: int
    num_bytes: int
    sha256: Sha256
    index_sha256: Sha256
    pixels_sha256: Sha256 | None

    def __post_init__(self) -> None:
        if self.name.partition("-")[0] != self.split:
            raise ValueError(f"shard {self.name} is not of the split {self.split}")


@dataclass(frozen=True)
class Manifest:
    """Content of a dataset, with factors in the order of the index columns and shards by split and name.

    Attributes:
        image_shape: (height, width, channels).
        encoding: Encoding of the images in the tars, `npy` or `png`.
        factors: Factors with their values.
        source_fingerprint: Fingerprint of the source.
        shards: Shards of all splits.
        left_out: Number of files of the source that are not read as samples, by reason.
        num_skipped: Number of samples that cannot be decoded, and so are in no shard.
        skipped: The first 100 of these samples.
    """

    image_shape: tuple[int, int, int]
    encoding: str
    factors: tuple[Factor, ...]
    source_fingerprint: str
    shards: tuple[Shard, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    num_skipped: int = 0
    skipped: tuple[Skipped, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal for equal bytes, wherever and whenever they were written."""
        hashes = [(shard.name, shard.sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps(sorted(hashes)).encode()).hexdigest()[:16]

    def select_factors(self, names: Collection[str]) -> list[Factor]:
        """Return the factors that metrics use, as `jobs.data.sources.base.select_factors` does."""
        return select_factors(self.factors, self.total_samples, names)

    @property
    def total_samples(self) -> int:
        """Number of samples in all splits."""
        return sum(shard.num_samples for shard in self.shards)

    def of_split(self, split: Split) -> tuple[Shard, ...]:
        """Return the shards of a split in the order that numbers its samples."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_samples(self, split: Split) -> int:
        """Return the number of samples in a split."""
        return sum(shard.num_samples for shard in self.of_split(split))

    @property
    def skipped_names(self) -> str:
        """Number of skipped samples and names of the first, as text; empty if there are none."""
        if not self.num_skipped:
            return ""
        names = format_names([sample.name for sample in self.skipped], self.num_skipped)
        return f"{self.num_skipped:,} {'image' if self.num_skipped == 1 else 'images'}: {names}"

    def decode_error(self) -> UserError:
        """Return the error for skipped samples where `data.on_error=error`."""
        return UserError(
            f"data.on_error=error: cannot decode {self.skipped_names} ({self.skipped[0].reason}). "
            "Repair or remove them, or set data.on_error=skip."
        )


@dataclass(frozen=True)
class TaskOutput:
    """Shards and skipped samples of a finished task."""

    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...] = ()


_TASK, _MANIFEST = TypeAdapter(TaskOutput), TypeAdapter(Manifest)


def shard_name(split: Split, task: int) -> str:
    """Return the name, without .tar, of a task's tar of a split."""
    return f"{split}-{task:05d}"


def tar_file(shard: str) -> str:
    """Return the name of a shard's tar."""
    return f"{shard}.tar"


def index_file(shard: str) -> str:
    """Return the name of a shard's index."""
    return f"{shard}.index.npy"


def task_file(task: int) -> str:
    """Return the name of the file that lists the shards of a finished task."""
    return f"task-{task:05d}.json"


def write_task_file(storage: Storage, task: int, output: TaskOutput) -> None:
    """Record the output of a finished task, after its tars and indexes were published."""
    storage.write(task_file(task), _seal(asdict(output)))


def read_task_file(storage: Storage, task: int) -> TaskOutput:
    """Return the output of a finished task.

    Raises:
        UserError: The file does not exist.
        CorruptedError: The file is damaged; it is removed, so that the next command repeats the task.
    """
    name = task_file(task)
    content = storage.read(name)
    if content is None:
        raise UserError(
            f"{storage.url}/{name}: not found. Check that every node sees this storage and that no other program "
            "changes it.",
            retry=True,
        )
    try:
        return _validate(_TASK, _unseal(content))
    except (ValueError, KeyError, TypeError) as error:
        storage.remove(name)
        message = f"{storage.url}/{name}: corrupted ({error}). Its shards have to be written again."
        raise CorruptedError(message, retry=True) from error


def finished_tasks(storage: Storage) -> set[int]:
    """Return the numbers of the finished tasks."""
    return {int(name[5:-5]) for name in storage.names("task-") if _TASK_FILE.fullmatch(name)}


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Publish a dataset whose shards were published; a manifest of other content raises a UserError."""
    content = _seal({"format": FORMAT, **asdict(manifest)})
    current = storage.create(MANIFEST, content)
    if current != content and _parse(storage, current).fingerprint != manifest.fingerprint:
        raise UserError(
            f"{storage.url}: another command has published other content. Use that dataset, or replace it with "
            "force=shard.",
            retry=True,
        )


def read_manifest(storage: Storage) -> Manifest | None:
    """Return the content of a dataset, or None if no dataset was published.

    Raises:
        UserError: The manifest is of another version.
        CorruptedError: The manifest is damaged.
    """
    content = storage.read(MANIFEST)
    return _parse(storage, content) if content is not None else None


def _parse(storage: Storage, text: bytes) -> Manifest:
    path = f"{storage.url}/{MANIFEST}"
    try:
        content = _unseal(text)
        version = content.pop("format")
        if version != FORMAT:
            raise UserError(f"{path}: format {version} instead of {FORMAT}. Write the shards again with force=shard.")
        return _validate(_MANIFEST, content)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedError(f"{path}: corrupted ({error}). Write the shards again with force=shard.") from error


def _validate(adapter: TypeAdapter[_Record], content: Any) -> _Record:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _seal(content: dict[str, Any]) -> bytes:
    """Return JSON with the hash of the rest, so that every changed bit is detected."""
    return json.dumps({"sha256": _digest(content), **content}, indent=1).encode()


def _unseal(text: bytes) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if content.pop("sha256", None) != _digest(content):
        raise ValueError("the content does not fit its hash")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
