"""The one owner of a sharded dataset's names and formats: what the writer writes, the reader reads.

manifest.json               everything below, written last: without it there is no dataset
train-00003.tar             samples `KEY.json` (factors) and `KEY.npy` (image), a plain WebDataset tar
train-00003.index.npy       int64 (n, 3): offset of the pixels, offset of the JSON, length of the JSON
task-00003.json             what task 3 wrote, so that a killed job does not do it again
    origin.json                 which source all this is from
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.data.source import Factor, Source, Split
from jobs.errors import UserError
from jobs.files import write_json

FORMAT = 1
MANIFEST = "manifest.json"
ORIGIN = "origin.json"
_SHARD_NAME = re.compile(r"(train|validation|test)-\d{5,}")  # it becomes a path: no folder may hide in it


@dataclass(frozen=True)
class Shard:
    """One tar of one split."""

    name: str  # without .tar
    split: Split
    num_samples: int
    num_bytes: int
    sha256: str  # of the tar
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds. image_shape is (height, width, channels)."""

    image_shape: tuple[int, int, int]
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


def task_file(task: int) -> str:
    """Name of the file that says what a finished task wrote."""
    return f"task-{task:05d}.json"


def is_partial(folder: Path, source: Source | None) -> bool:
    """Whether an interrupted job has left work in `folder` that fits the source as it is now."""
    try:
        return source is not None and bool(json.loads((folder / ORIGIN).read_text()) == source.fingerprint)
    except (OSError, ValueError):
        return False


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish a dataset: its shards are whole and in place when this is called."""
    write_json(folder / MANIFEST, {"format": FORMAT, "fingerprint": manifest.fingerprint, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest | None:
    """The dataset in `folder`, or None if none was published there.

    Raises:
        UserError: there is a manifest, but it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}: use force=shard")
        height, width, channels = content["image_shape"]
        manifest = Manifest(
            (height, width, channels),
            tuple(Factor(factor["name"], tuple(factor["values"])) for factor in content["factors"]),
            content["source_fingerprint"],
            tuple(Shard(**shard) for shard in content["shards"]),
        )
        if not all(_SHARD_NAME.fullmatch(shard.name) for shard in manifest.shards):
            raise ValueError("a shard has a name that is none of ours")
        if manifest.fingerprint != content["fingerprint"]:
            raise ValueError("its fingerprint does not fit its shards")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): write the shards again with force=shard") from error
    return manifest
