"""Write samples as WebDataset tars, with an index of where each image lies."""

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

from jobs.data.config import BaseDataConfig
from jobs.data.manifest import Shard, index_file, shard_name, tar_file, write_task_file
from jobs.data.sources.base import SPLITS, Sample, Source, Split
from jobs.errors import UserError
from jobs.storage import open_store
from jobs.storage.base import Store

BLOCK = 512  # every header is one, and every member is padded to whole ones
PADDING = [bytes(size) for size in range(BLOCK)]  # zeros from the end of a content to the next block
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11  # what eleven octal digits cannot hold


def _blank_header() -> bytes:
    """A header with the fields that all members share, and spaces for the checksum, as its sum wants them."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o444, 0
    info.uname = info.gname = "bigdata"  # what webdataset writes
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE] = b"\0" * 12
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_BLANK = _blank_header()
_BLANK_SUM = sum(_BLANK)


def member_header(name: bytes, size: int) -> bytes:
    """The header block of a file member.

    Args:
        name: 1 to 100 ASCII bytes.
        size: of the content, bytes, below 8 GiB.

    Raises:
        ValueError: the name or the size does not fit a plain header.
    """
    if not 0 < len(name) <= 100 or not name.isascii() or not 0 <= size < _LARGEST:
        raise ValueError(f"a member {name!r} of {size} bytes does not fit a plain tar header")
    middle, middle_sum = _after_name(size)
    return b"%b%b%06o\0 %b" % (name.ljust(100, b"\0"), middle, middle_sum + sum(name), _BLANK[_CHECKSUM.stop :])


@lru_cache(1024)  # members of one kind have a size or two
def _after_name(size: int) -> tuple[bytes, int]:
    """A header's bytes from the name to the checksum, and the sum of all but the name."""
    octal = b"%011o\0" % size
    middle = _BLANK[_NAME.stop : _SIZE.start] + octal + _BLANK[_SIZE.stop : _CHECKSUM.start]
    return middle, _BLANK_SUM + sum(octal)


def end_of_archive(size: int) -> bytes:
    """The zeros that end an archive of `size` bytes: two blocks at least, up to a whole record."""
    return b"\0" * (2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)


_BUFFER = 2**20  # bytes that are hashed and written at once


def split_of(sample: Sample, validation_fraction: float, test_fraction: float) -> Split:
    """The publisher's split; else one by the hash of the key, so that adding samples moves no other.

    Where the publisher names a test split, the rest of his samples is divided into train and validation;
    where he names all three, by `validation_fraction` of zero, they stay as they are.
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


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 has before its pixels."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG file of an image (H, W, 1 or 3)."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


class ShardWriter:
    """One tar of one split, and its index, in a scratch folder.

    Equal samples give equal bytes: members in the order webdataset gives them (by extension), no time, no owner.

    Args:
        folder: where the two files are written, under their final names.
        name: of the shard, without .tar.
        split: which.
        image_shape: (height, width, channels) of every image.
        factors: names of the factors that every sample has.
        encoding: "npy" or "png".
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
        # Filled in by %, which is several times as fast as json.dumps.
        self._json = b"{%b}" % b",".join(json.dumps(name).replace("%", "%%").encode() + b":%d" for name in factors)
        self._npy_header = npy_header(image_shape)
        self._file = (folder / tar_file(name)).open("wb")
        self._digest, self._pixels = hashlib.sha256(), hashlib.sha256()
        self._parts: list[bytes | NDArray[np.uint8]] = []
        self._flushed = self._offset = 0
        self._rows: list[tuple[int, ...]] = []

    def write(self, sample: Sample) -> None:
        """Append one sample: its JSON member, then its image.

        Raises:
            ValueError: the image has another shape or type, or the key is no plain member name.
        """
        image = np.ascontiguousarray(sample.image)
        if image.shape != self._image_shape or image.dtype != np.uint8:
            raise ValueError(f"sample {sample.key}: {image.dtype} {image.shape}, not uint8 {self._image_shape}")
        key = sample.key.encode()
        factors = [sample.factors[name] for name in self._factors]
        text = self._json % tuple(factors)
        self._member(key + b".json", len(text), text)
        if self._encoding == "png":
            content = png_bytes(image)
            self._pixels.update(image.data)
            size = len(content)
            at = self._member(key + b".png", size, content)
        else:
            header, size = self._npy_header, image.nbytes
            at = self._member(key + b".npy", len(header) + size, header, image) + len(header)
        self._rows.append((at, size, *factors))
        if self._offset - self._flushed >= _BUFFER:
            self._flush()

    def _member(self, name: bytes, size: int, *content: bytes | NDArray[np.uint8]) -> int:
        """Append a member; returns the offset of its content."""
        zeros = PADDING[-size % BLOCK]
        self._parts += (member_header(name, size), *content, zeros)
        start = self._offset + BLOCK
        self._offset = start + size + len(zeros)
        return start

    def _flush(self) -> None:
        content = b"".join(self._parts)  # type: ignore[arg-type]  # arrays give their bytes, too
        self._digest.update(content)
        self._file.write(content)
        self._parts.clear()
        self._flushed = self._offset

    def abort(self) -> None:
        """Close the file; whoever made the folder removes it."""
        self._file.close()

    def close(self) -> Shard:
        """Finish both files."""
        self._parts.append(end_of_archive(self._offset))
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


def write_parts(source: Source, url: str, parts: list[tuple[int, range]], config: BaseDataConfig) -> Iterator[int]:
    """Write consecutive ranges of a source, one after the other: the tars of each, and last its task file.

    Running it again, after a crash at any point, gives the same files.

    Args:
        source: read once, from the first sample of the first range to the last of the last.
        url: the dataset's place in the store.
        parts: number and samples of each range; they follow one another without a gap.
        config: splits and encoding.

    Yields:
        Samples of each range, when it is published.

    Raises:
        UserError: the source is damaged or ends early, or the place cannot be written.
    """
    store = open_store(url)
    samples = source.read(parts[0][1].start, parts[-1][1].stop)
    for number, part in parts:
        _write_part(source, store, number, islice(samples, len(part)), len(part), config)
        yield len(part)


def _write_part(
    source: Source, store: Store, number: int, samples: Iterator[Sample], expected: int, config: BaseDataConfig
) -> None:
    writers: dict[Split, ShardWriter] = {}
    names = [factor.name for factor in source.factors]
    with store.scratch() as folder:
        try:
            for sample in samples:
                split = split_of(sample, config.validation_fraction, config.test_fraction)
                if split not in writers:
                    name = shard_name(split, number)
                    writers[split] = ShardWriter(folder, name, split, source.image_shape, names, config.encoding)
                writers[split].write(sample)
            shards = [writers[split].close() for split in SPLITS if split in writers]
            if sum(shard.num_samples for shard in shards) != expected:
                raise UserError(f"the source has ended early, in task {number}: have its files changed? run again")
        finally:
            for writer in writers.values():
                writer.abort()
        for shard in shards:
            for name in (tar_file(shard.name), index_file(shard.name)):
                store.publish(folder / name, name)
    write_task_file(store, number, shards)
