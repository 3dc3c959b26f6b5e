"""The one owner of a sharded dataset's names and formats: what the writer writes, the reader reads.

manifest.json               everything below, written last: without it there is no dataset
train-00003.tar             samples `KEY.json` (factors) and `KEY.npy` or `KEY.png`, a plain WebDataset tar
train-00003.index.npy       int64 (n, 2 + K): offset and length of the pixels (of the PNG file), then the factors
task-00003.json             what task 3 wrote, so that a killed job does not do it again
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from jobs.data.sources.base import Factor, Split
from jobs.errors import UserError
from jobs.storage.base import Store

FORMAT = 2
MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"(train|validation|test)-\d{5,}")  # it becomes a path: no folder may hide in it
_SHA256 = re.compile(r"[0-9a-f]{64}")  # names a copy in the cache
_TASK_FILE = re.compile(r"task-\d{5,}\.json")


@dataclass(frozen=True)
class Shard:
    """One tar of one split."""

    name: str  # without .tar
    split: Split
    num_samples: int
    num_bytes: int
    sha256: str  # of the tar
    index_sha256: str
    pixels_sha256: str | None  # of the images one after the other, where the tar holds them as PNG


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds. image_shape is (height, width, channels)."""

    image_shape: tuple[int, int, int]
    encoding: str  # "npy" or "png"
    factors: tuple[Factor, ...]
    source_fingerprint: str
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal for equal bytes, wherever and whenever they were written."""
        parts = [(shard.name, shard.sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()[:16]

    def of_split(self, split: Split) -> tuple[Shard, ...]:
        """Shards of one split, in the order that numbers its samples."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_samples(self, split: Split) -> int:
        """Samples in one split."""
        return sum(shard.num_samples for shard in self.of_split(split))


def shard_name(split: Split, task: int) -> str:
    """Name of a task's tar of one split, without .tar."""
    return f"{split}-{task:05d}"


def tar_file(shard: str) -> str:
    """Name of a shard's tar."""
    return f"{shard}.tar"


def index_file(shard: str) -> str:
    """Name of a shard's index."""
    return f"{shard}.index.npy"


def write_task_file(store: Store, task: int, shards: list[Shard]) -> None:
    """Say what a finished task wrote: its tars and indexes are in place when this is called."""
    store.write(_task_file(task), _sealed({"shards": [asdict(shard) for shard in shards]}))


def read_task_file(store: Store, task: int) -> list[Shard]:
    """What a finished task wrote.

    Raises:
        UserError: the file is gone, or damaged and therefore removed, so that the task is done again.
    """
    name = _task_file(task)
    content = store.read(name)
    if content is None:
        raise UserError(
            f"{store.url}/{name} is gone: something else changes that place, or not every node sees it; run again"
        )
    try:
        return [_shard(shard) for shard in _opened(content)["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        store.remove(name)
        raise UserError(f"{store.url}/{name} was damaged ({error}): run again, to write that part anew") from error


def finished_tasks(store: Store) -> set[int]:
    """Numbers of the tasks that are done."""
    return {int(name[5:-5]) for name in store.names("task-") if _TASK_FILE.fullmatch(name)}


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Publish a dataset: its shards are whole and in place when this is called.

    Raises:
        UserError: there is another manifest already, of other content.
    """
    content = _sealed({"format": FORMAT, **asdict(manifest)})
    there = store.create(MANIFEST, content)
    if there != content and _parse(there).fingerprint != manifest.fingerprint:
        raise UserError(
            f"{store.url} was published by another command in the meantime, with other content: run again to use that, "
            "or with force=shard to replace it"
        )


def read_manifest(store: Store) -> Manifest | None:
    """The dataset in a place, or None if none was published there.

    Raises:
        UserError: there is a manifest, but it is damaged or of another version.
    """
    content = store.read(MANIFEST)
    try:
        return _parse(content) if content is not None else None
    except UserError as error:
        raise UserError(f"{store.url}/{MANIFEST} {error}") from error


def _parse(text: bytes) -> Manifest:
    try:
        content = _opened(text)
        if content["format"] != FORMAT:
            raise UserError(f"has format {content['format']}, this version reads {FORMAT}: use force=shard")
        height, width, channels = content["image_shape"]
        return Manifest(
            (height, width, channels),
            content["encoding"],
            tuple(Factor(factor["name"], tuple(factor["values"])) for factor in content["factors"]),
            content["source_fingerprint"],
            tuple(_shard(shard) for shard in content["shards"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"is damaged ({error}): write the shards again with force=shard") from error


def _shard(content: dict[str, Any]) -> Shard:
    """A shard whose names are names: no folder hides in them."""
    shard = Shard(**content)
    hashes = [shard.sha256, shard.index_sha256] + [shard.pixels_sha256] * (shard.pixels_sha256 is not None)
    if not _SHARD_NAME.fullmatch(shard.name) or shard.name.partition("-")[0] != shard.split:
        raise ValueError("a shard has a name that is none of ours")
    if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in hashes):
        raise ValueError("a shard has a hash that is none")
    return shard


def _task_file(task: int) -> str:
    return f"task-{task:05d}.json"


def _sealed(content: dict[str, Any]) -> bytes:
    """JSON with the hash of all the rest, so that no bit of it can change unseen."""
    return json.dumps({"sha256": _digest(content), **content}, indent=1).encode()


def _opened(text: bytes) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if content.pop("sha256", None) != _digest(content):
        raise ValueError("its content does not fit its hash")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
