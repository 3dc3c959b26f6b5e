"""Write one task's share of a source as WebDataset tars, one per split."""

import hashlib
import io
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from jobs.data.manifest import Shard, shard_name, task_file
from jobs.data.source import SPLITS, Sample, Source, Split
from jobs.files import file_sha256, write_json

_BLOCK = 512  # of tar: every header is one, and every member is padded to whole ones


def split_of(sample: Sample, validation_fraction: float, test_fraction: float) -> Split:
    """The publisher's split; else one by the hash of the key, so that adding samples moves no other.

    Where the publisher names a test split, the rest of his samples is divided into train and validation.
    """
    if sample.split is not None and sample.split != "train":
        return sample.split
    if sample.split == "train":
        test_fraction = 0.0
    digest = hashlib.sha256(sample.key.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def npy_bytes(image: np.ndarray) -> tuple[bytes, int]:
    """A .npy file of the image, and the offset of the first pixel in it."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(image), allow_pickle=False)
    return buffer.getvalue(), buffer.tell() - image.nbytes


class ShardWriter:
    """One tar with its index; it appears under its name only when `close` has finished it.

    The tar is webdataset's own, with time and owner fixed, so that equal samples give equal bytes.
    """

    def __init__(self, folder: Path, split: Split, task: int) -> None:
        self.split = split
        self.name = shard_name(split, task)
        self.tar_path = folder / f"{self.name}.tar"
        self.index_path = folder / f"{self.name}.index.npy"
        self._partial = folder / f"{self.name}.tar.partial"
        self._file = self._partial.open("wb")
        self._tar = TarWriter(self._file, encoder=False, mtime=0)
        self._offset = 0
        self._rows: list[tuple[int, int, int]] = []

    def write(self, sample: Sample) -> None:
        """Append one sample: its JSON member, then its image."""
        factors = json.dumps(sample.factors, separators=(",", ":")).encode()
        image, pixels = npy_bytes(sample.image)
        # webdataset writes members in the order of their extensions.
        self._tar.write({"__key__": sample.key, "json": factors, "npy": image})
        json_at = self._offset + _BLOCK
        npy_at = json_at + _padded(len(factors)) + _BLOCK
        self._rows.append((npy_at + pixels, json_at, len(factors)))
        self._offset = npy_at + _padded(len(image))

    def abort(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):  # a full disk may be why
            self._tar.close()
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def close(self) -> Shard:
        """Finish, hash and publish the tar and its index."""
        self._tar.close()
        self._file.close()
        index = io.BytesIO()
        np.save(index, np.asarray(self._rows, np.int64), allow_pickle=False)
        self.index_path.write_bytes(index.getvalue())
        digest = file_sha256(self._partial)
        num_bytes = self._partial.stat().st_size
        self._partial.replace(self.tar_path)
        index_digest = hashlib.sha256(index.getvalue()).hexdigest()
        return Shard(self.name, self.split, len(self._rows), num_bytes, digest, index_digest)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def write_task(
    source: Source, folder: Path, task: int, samples: range, validation_fraction: float, test_fraction: float
) -> list[Shard]:
    """Write the tars of one range of the source; the task file comes last and says it is whole.

    Running it again, after a crash at any point, gives the same files.
    """
    writers: dict[Split, ShardWriter] = {}
    try:
        for sample in source.read(samples.start, samples.stop):
            split = split_of(sample, validation_fraction, test_fraction)
            if split not in writers:
                writers[split] = ShardWriter(folder, split, task)
            writers[split].write(sample)
        shards = [writers[split].close() for split in SPLITS if split in writers]
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    write_json(folder / task_file(task), [asdict(shard) for shard in shards])
    return shards
