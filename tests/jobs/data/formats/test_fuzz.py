"""Read thousands of damaged files of every format: each gives a valid result or one line that names the file."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import yaml
from helpers.fuzz import mutants
from PIL import Image

from jobs.cli import UsageError
from jobs.data.formats.hdf5 import find_hdf5_array
from jobs.data.formats.idx import ByteArray, read_idx_header
from jobs.data.formats.images import read_image, read_npy_image
from jobs.data.formats.mat5 import open_mat_array
from jobs.data.formats.npz import find_npz_array
from jobs.data.formats.published import open_plain_or_gzip
from jobs.data.sources.base import Sample, Skipped
from jobs.data.sources.webdataset_tars import WebDatasetTars
from jobs.errors import UserError
from pipeline.settings.parse import read_preset

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
ROWS = PIXELS.reshape(4, 6, 20, 3)
_MAX_BYTES = 2**30  # that a process may need for a file of a few kilobytes


def image(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags.update({0x010F: "maker", 0x0112: 6, 0x011A: 72.0, 0x0128: 2})
    tags.get_ifd(0x8769).update({0x9000: b"0230", 0x829A: 0.01})
    return tags


def npz(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("images.npy", npy(ROWS))
    return buffer.getvalue()


def hdf5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("group/images", data=ROWS, chunks=(2, 3, 10, 1), compression="gzip")
    return buffer.getvalue()


def mat(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"other": np.arange(5), "images": ROWS}, do_compression=compressed)
    return buffer.getvalue()


def tar(*, link: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        small = image("PNG", PIXELS[:6, :6])
        for name, content in (("0.png", small), ("1é.png", small)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 0.5
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("2.png")
            info.type, info.linkname = tarfile.LNKTYPE, "0.png"
            archive.addfile(info)
    return buffer.getvalue()


def labels() -> bytes:
    table = {"size": 3, "dark": True, "kind": "a", "note": "é" * 9, "list": [[1.5], {"x": None}]}
    return json.dumps(table).encode()


def check_image(path: Path) -> None:
    pixels = read_image(path, str(path), 16, 3, bit_depth=16)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)


def check_npy(path: Path) -> None:
    pixels = read_npy_image(path.read_bytes(), str(path), 16, 1)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 1), np.uint8)


def check_array(find: Callable, name: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        array = find(path, name, "uint8", (6, 20, 3))
        count = 0
        for block in array.blocks(0, min(array.shape[0], 1000)):
            assert (block.shape[1:], block.dtype) == ((6, 20, 3), np.uint8)
            count += len(block)
        assert count == min(array.shape[0], 1000)

    return check


def check_mat(path: Path) -> None:
    with open_plain_or_gzip(path) as file, open_mat_array(str(path), file, "images") as array:
        assert min(array.shape) > 0
        if array.shape == ROWS.shape and array.dtype == np.uint8:
            assert len(array.read(ROWS.size)) == ROWS.size
            array.finish()


def check_idx(path: Path) -> None:
    array = ByteArray(path, read_idx_header)
    array.validate_length()
    assert sum(len(block) for block in array.blocks(0, array.shape[0])) == array.shape[0]


def check_tars(path: Path) -> None:
    source = WebDatasetTars(path.parent, 16, 3)
    source.validate()
    for sample in source.read(0, source.num_samples):
        if isinstance(sample, Skipped):
            check_message(sample.reason, path)
        else:
            assert isinstance(sample, Sample)
            assert sample.image.shape == (16, 16, 3)


def check_labels(path: Path) -> None:
    target = path.parent / "0.tar"
    with tarfile.open(target, "w") as archive:
        for name, content in (("0.png", PNG), ("0.json", path.read_bytes()), ("1.png", PNG), ("1.json", labels())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    check_tars(target)


def check_preset(path: Path) -> None:
    assert isinstance(read_preset(str(path)), dict)


def check_message(message: str, path: Path) -> None:
    assert path.name in message
    assert message.isprintable(), message
    assert len(message) < 1000


@dataclass(frozen=True)
class Format:
    """A file of a few hundred bytes to a few kilobytes, and the function that reads it."""

    name: str
    content: bytes
    check: Callable[[Path], None]


PNG = image("PNG", PIXELS[:6, :6])
PRESET = {"model.rungs": 3, "train": {"steps": [1, 2.5, None], "date": "2020-01-01"}, "note": "é\n\t"}
FORMATS = [
    Format("gray.png", image("PNG", PIXELS[..., 0]), check_image),
    Format("palette.png", image("PNG", PIXELS[..., 0] % 16, bits=4, dpi=(72, 72)), check_image),
    Format("deep.png", image("PNG", PIXELS[..., 0].astype(np.uint16) * 257), check_image),
    Format("exif.png", image("PNG", exif=exif()), check_image),
    Format("color.jpg", image("JPEG"), check_image),
    Format("progressive.jpg", image("JPEG", progressive=True), check_image),
    Format("exif.jpg", image("JPEG", PIXELS[:8, :8], exif=exif()), check_image),
    Format("lossy.webp", image("WEBP", exif=exif()), check_image),
    Format("lossless.webp", image("WEBP", lossless=True), check_image),
    Format("gray.gif", image("GIF", PIXELS[..., 0]), check_image),
    Format("color.bmp", image("BMP"), check_image),
    Format("raw.tif", image("TIFF"), check_image),
    Format("lzw.tif", image("TIFF", compression="tiff_lzw"), check_image),
    Format("jpeg.tif", image("TIFF", compression="jpeg"), check_image),
    Format("deep.tif", image("TIFF", PIXELS[..., 0].astype(np.uint16), exif=exif()), check_image),
    Format("color.npy", npy(PIXELS), check_npy),
    Format("stored.npz", npz(zipfile.ZIP_STORED), check_array(find_npz_array, "images")),
    Format("deflated.npz", npz(zipfile.ZIP_DEFLATED), check_array(find_npz_array, "images")),
    Format("chunks.h5", hdf5(), check_array(find_hdf5_array, "group/images")),
    Format("plain.mat", mat(compressed=False), check_mat),
    Format("compressed.mat", mat(compressed=True), check_mat),
    Format("idx.gz", gzip.compress(b"\0\0\x08\3" + bytes([0, 0, 0, 2] * 3) + b"12345678"), check_idx),
    Format("plain.tar", tar(link=True), check_tars),
    Format("gzip.tar", gzip.compress(tar(link=False)), check_tars),
    Format("labels.json", labels(), check_labels),
    Format("preset.yaml", yaml.safe_dump(PRESET).encode(), check_preset),
]


def peak_memory() -> int:
    """Return the largest memory in bytes that this process had since the last `forget_peak`."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def read_mutants(file: Format, folder: Path, count: int, seed: int = 0) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present memory
    before, path = peak_memory(), folder / file.name
    path.write_bytes(file.content)
    file.check(path)
    for number, content in enumerate(mutants(file.content, count, seed)):
        path.write_bytes(content)
        try:
            file.check(path)
        except (UserError, UsageError) as error:
            check_message(str(error), folder / "0.tar" if file.check is check_labels else path)
        except BaseException as error:
            raise AssertionError(f"mutant {number} of {file.name}, seed {seed}") from error
    assert peak_memory() - before < _MAX_BYTES


@pytest.mark.parametrize("file", FORMATS, ids=lambda file: file.name)
def test_damaged_file_gives_a_result_or_one_line(file: Format, tmp_path: Path) -> None:
    read_mutants(file, tmp_path, 50)


@pytest.mark.slow
@pytest.mark.parametrize("file", FORMATS, ids=lambda file: file.name)
def test_thousands_of_damaged_files_give_a_result_or_one_line(file: Format, tmp_path: Path) -> None:
    read_mutants(file, tmp_path, 2000, seed=1)
