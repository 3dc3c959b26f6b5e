"""Write samples as WebDataset tars with an index of the position of each image.

The tars are byte-identical to those of webdataset's own writer with its time fixed. Headers are built here, because
tarfile formats every field of every header anew, which is slow.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.data.manifest import Shard, TaskOutput, index_file, shard_name, tar_file, write_task_file
from jobs.data.sources.base import SPLITS, BaseDataConfig, Sample, Skipped, Source, Split
from jobs.errors import UserError
from jobs.storage import open_storage
from jobs.storage.base import Storage

ShardTask = tuple[int, range]  # number of a task, and its samples

_BLOCK = 512  # bytes of a tar header; the content of a member is padded to a multiple
_PADDING = [bytes(size) for size in range(_BLOCK)]
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # fields of a header
_SIZE_LIMIT = 8**11  # because a header has eleven octal digits for the size
_BUFFER = 2**20  # bytes that are hashed and written at once


def _blank_header() -> bytes:
    """Return a header with the fields that all members share, and spaces for the checksum, as its sum requires."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o444, 0
    info.uname = info.gname = "bigdata"  # as webdataset
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE] = b"\0" * 12
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_BLANK = _blank_header()
_BLANK_SUM = sum(_BLANK)


def member_header(name: bytes, size: int) -> bytes:
    """Return a file's tar header; a ValueError unless the name has 1 to 100 ASCII bytes and the size is below 8 GiB."""
    if not 0 < len(name) <= 100 or not name.isascii() or not 0 <= size < _SIZE_LIMIT:
        raise ValueError(f"a member {name!r} of {size} bytes does not fit a ustar header")
    middle, middle_sum = _header_after_name(size)
    return b"%b%b%06o\0 %b" % (name.ljust(100, b"\0"), middle, middle_sum + sum(name), _BLANK[_CHECKSUM.stop :])


@lru_cache(1024)  # because members of one kind have one or two sizes
def _header_after_name(size: int) -> tuple[bytes, int]:
    """Return a header's bytes from the name to the checksum, and the sum of all bytes but the name."""
    octal = b"%011o\0" % size
    middle = _BLANK[_NAME.stop : _SIZE.start] + octal + _BLANK[_SIZE.stop : _CHECKSUM.start]
    return middle, _BLANK_SUM + sum(octal)


def assign_split(sample: Sample, validation_fraction: float, test_fraction: float) -> Split:
    """Return the publisher's split, else one by the hash of the key, so that added samples move no other sample.

    If the publisher has a test split, `test_fraction` is unused, and a `validation_fraction` of zero leaves the
    publisher's splits unchanged.
    """
    if sample.split is not None and sample.split != "train":
        return sample.split
    if sample.split == "train":
        test_fraction = 0.0
    digest = hashlib.sha256(sample.key.encode()).digest()
    quantile = int.from_bytes(digest[:8], "big") / 2**64
    if quantile < test_fraction:
        return "test"
    return "validation" if quantile < test_fraction + validation_fraction else "train"


class ShardWriter:
    """Writes one tar of one split, and its index, in a scratch folder; `name` is without .tar.

    Equal samples give equal bytes: members in webdataset's order (by extension), without time and owner.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        split: Split,
        image_shape: tuple[int, ...],
        factors: Sequence[str],
        encoding: Literal["npy", "png"],
    ) -> None:
        self._name, self._split, self._encoding = name, split, encoding
        self._folder, self._image_shape, self._factors = folder, image_shape, factors
        # A template for %, which is several times as fast as json.dumps.
        self._json = b"{%b}" % b",".join(json.dumps(name).replace("%", "%%").encode() + b":%d" for name in factors)
        npy_header = io.BytesIO()
        np.lib.format.write_array_header_1_0(npy_header, {"descr": "|u1", "fortran_order": False, "shape": image_shape})
        self._npy_header = npy_header.getvalue()
        self._file = (folder / tar_file(name)).open("wb")
        self._digest, self._pixels = hashlib.sha256(), hashlib.sha256()
        self._buffer: list[bytes | NDArray[np.uint8]] = []
        self._flushed = self._offset = 0
        self._rows: list[tuple[int, ...]] = []

    def write(self, sample: Sample) -> None:
        """Append a sample, its JSON first.

        Raises:
            ValueError: The image has another shape or type, or the key is too long for a member name.
        """
        image = np.ascontiguousarray(sample.image)
        if image.shape != self._image_shape or image.dtype != np.uint8:
            raise ValueError(f"sample {sample.key}: {image.dtype} {image.shape} instead of uint8 {self._image_shape}")
        key = sample.key.encode()
        factors = [sample.factors[name] for name in self._factors]
        text = self._json % tuple(factors)
        self._append(key + b".json", len(text), text)
        if self._encoding == "png":
            buffer = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
            content = buffer.getvalue()
            self._pixels.update(image.data)
            size = len(content)
            offset = self._append(key + b".png", size, content)
        else:
            header, size = self._npy_header, image.nbytes
            offset = self._append(key + b".npy", len(header) + size, header, image) + len(header)
        self._rows.append((offset, size, *factors))
        if self._offset - self._flushed >= _BUFFER:
            self._flush()

    def _append(self, name: bytes, size: int, *content: bytes | NDArray[np.uint8]) -> int:
        """Append a member and return the offset of its content."""
        padding = _PADDING[-size % _BLOCK]
        self._buffer += (member_header(name, size), *content, padding)
        start = self._offset + _BLOCK
        self._offset = start + size + len(padding)
        return start

    def _flush(self) -> None:
        content = b"".join(self._buffer)  # type: ignore[arg-type]  # join takes arrays, too
        self._digest.update(content)
        self._file.write(content)
        self._buffer.clear()
        self._flushed = self._offset

    def abort(self) -> None:
        """Close the tar without finishing it."""
        self._file.close()

    def close(self) -> Shard:
        """Finish both files and return the name, sizes and hashes of the shard."""
        # Two blocks of zeros end a tar, and more fill it to a whole record.
        self._buffer.append(b"\0" * (2 * _BLOCK + -(self._offset + 2 * _BLOCK) % tarfile.RECORDSIZE))
        self._flush()
        num_bytes = self._file.tell()
        self._file.close()
        index = io.BytesIO()
        np.save(index, np.asarray(self._rows, np.int64), allow_pickle=False)
        (self._folder / index_file(self._name)).write_bytes(index.getvalue())
        return Shard(
            name=self._name,
            split=self._split,
            num_samples=len(self._rows),
            num_bytes=num_bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
            pixels_sha256=self._pixels.hexdigest() if self._encoding == "png" else None,
        )


def write_tasks(source: Source, url: str, tasks: list[ShardTask], config: BaseDataConfig) -> Iterator[int]:
    """Yield the number of samples of each task after its publication: the tars and indexes, and last its task file.

    A repetition after an interruption at any point writes the same files. Runs in a Ray task.

    Args:
        source: Source of the samples, read once from the first sample of the first task to the last of the last.
        url: Address of the dataset.
        tasks: Tasks whose samples follow one another without a gap.
        config: Split fractions and encoding.

    Raises:
        UserError: The source is damaged or ends early, or the storage cannot be written.
    """
    storage = open_storage(url)
    samples = source.read(tasks[0][1].start, tasks[-1][1].stop)
    for task, ids in tasks:
        _write_task(source, storage, task, islice(samples, len(ids)), len(ids), config)
        yield len(ids)


def _write_task(
    source: Source,
    storage: Storage,
    task: int,
    samples: Iterator[Sample | Skipped],
    expected: int,
    config: BaseDataConfig,
) -> None:
    writers: dict[Split, ShardWriter] = {}
    skipped: list[Skipped] = []
    names = [factor.name for factor in source.factors]
    with storage.scratch() as folder:
        try:
            for sample in samples:
                if isinstance(sample, Skipped):
                    skipped.append(sample)
                    continue
                split = assign_split(sample, config.validation_fraction, config.test_fraction)
                if split not in writers:
                    name = shard_name(split, task)
                    writers[split] = ShardWriter(folder, name, split, source.image_shape, names, config.encoding)
                writers[split].write(sample)
            shards = tuple(writers[split].close() for split in SPLITS if split in writers)
            if sum(shard.num_samples for shard in shards) + len(skipped) != expected:
                raise UserError(
                    f"data: the source ended early in task {task}. Leave its files unchanged while they are read.",
                    retry=True,
                )
        finally:
            for writer in writers.values():
                writer.abort()
        for shard in shards:
            for name in (tar_file(shard.name), index_file(shard.name)):
                storage.publish(folder / name, name)
    write_task_file(storage, task, TaskOutput(shards, tuple(skipped)))
