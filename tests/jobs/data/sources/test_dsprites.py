"""Test dSprites with small files of both formats, written independently of the reader."""

import io
import itertools
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jobs.data.sources.dsprites import HDF5, NPZ, DSprites
from jobs.errors import UserError

Arrays = dict[str, np.ndarray]
SIZES = (1, 3, 2, 4, 3, 5)
VALUES = ((1.0,), (1.0, 2.0, 3.0), (0.5, 1.0), (0.0, 2.1, 4.2, 6.28), (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0))


def arrays() -> Arrays:
    classes = np.array(list(itertools.product(*map(range, SIZES))), np.int64)
    values = np.array(list(itertools.product(*VALUES)))
    images = np.random.default_rng(0).integers(0, 2, (len(classes), 64, 64), dtype=np.uint8)
    return {"imgs": images, "latents_classes": classes, "latents_values": values}


def write_npz(folder: Path, content: Arrays, save: Callable[..., None] = np.savez_compressed) -> Path:
    path = folder / NPZ.name
    save(path, metadata=np.array({"date": "April 2017"}, dtype=object), **content)
    return path


def write_hdf5(folder: Path, content: Arrays) -> Path:
    path = folder / HDF5.name
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=content["imgs"], chunks=(100, 2, 4), compression="gzip")
        for name in ("classes", "values"):
            file.create_dataset(f"latents/{name}", data=content[f"latents_{name}"], compression="gzip")
    return path


WRITERS = {
    "deflated": write_npz,
    "stored": lambda folder, content: write_npz(folder, content, np.savez),
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_dsprites_content_equals_file(tmp_path: Path, kind: str) -> None:
    content = arrays()
    WRITERS[kind](tmp_path, content)
    source = pickle.loads(pickle.dumps(DSprites(tmp_path)))
    assert source.num_samples == len(content["imgs"]) == 360
    assert source.image_shape == (64, 64, 1)
    assert source.sequential == (kind == "deflated")
    assert [(factor.name, factor.values) for factor in source.factors] == [
        ("shape", ("square", "ellipse", "heart")),
        ("scale", VALUES[2]),
        ("orientation", VALUES[3]),
        ("x", VALUES[4]),
        ("y", VALUES[5]),
    ]
    samples = list(source.read(0, 360))
    assert len({sample.key for sample in samples}) == 360
    for number, sample in enumerate(samples):
        assert sample.image.dtype == np.uint8
        np.testing.assert_array_equal(sample.image[..., 0], content["imgs"][number] * 255)
        assert list(sample.factors.items()) == list(
            zip(("shape", "scale", "orientation", "x", "y"), content["latents_classes"][number, 1:], strict=True)
        )
    parts = [sample for start in range(0, 360, 70) for sample in source.read(start, min(start + 70, 360))]
    assert [(sample.key, sample.factors) for sample in parts] == [(sample.key, sample.factors) for sample in samples]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(parts, samples, strict=True))


@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_dsprites_blocks_are_consecutive(tmp_path: Path, write: Callable[[Path, Arrays], Path]) -> None:
    """There are more images than one block of an .npz holds, each with its number in binary."""
    count, bits = 2500, np.arange(12)
    labels = np.tile(np.arange(count)[:, None] % 2, (1, 6))
    images = np.zeros((count, 64, 64), np.uint8)
    images[:, 0, :12] = np.arange(count)[:, None] >> bits & 1
    write(tmp_path, {"imgs": images, "latents_classes": labels, "latents_values": labels + 1.0})
    numbers = [int(sample.image[0, :12, 0] // 255 @ (1 << bits)) for sample in DSprites(tmp_path).read(7, count)]
    assert numbers == list(range(7, count))


def test_dsprites_both_files_reads_npz(tmp_path: Path) -> None:
    write_npz(tmp_path, {name: array[:20] for name, array in arrays().items()})
    write_hdf5(tmp_path, arrays())
    assert DSprites(tmp_path).num_samples == 20


def test_dsprites_warnings_and_fingerprint_follow_file(tmp_path: Path) -> None:
    write_hdf5(tmp_path, arrays())
    [warning] = DSprites(tmp_path).validate()
    assert "28,024,106" in warning
    before = DSprites(tmp_path).fingerprint
    assert before.startswith("dsprites-")
    write_hdf5(tmp_path, {**arrays(), "imgs": arrays()["imgs"][::-1]})
    assert DSprites(tmp_path).fingerprint != before
    write_npz(tmp_path, arrays())
    assert DSprites(tmp_path).validate() == []


def test_dsprites_header_of_python_2_is_read(tmp_path: Path) -> None:
    """Its long numbers end with an L, of which numpy warns."""
    write_npz(tmp_path, arrays(), np.savez)
    with zipfile.ZipFile(tmp_path / NPZ.name) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    old = b"'shape': (360, 64, 64), }  "
    assert old in members["imgs.npy"]
    members["imgs.npy"] = members["imgs.npy"].replace(old, b"'shape': (360L, 64, 64), } ")
    with zipfile.ZipFile(tmp_path / NPZ.name, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert len(list(DSprites(tmp_path).read(355, 360))) == 5


def test_dsprites_missing_file_error_names_file_and_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}.*{NPZ.name}"):
        DSprites(tmp_path).validate()


@pytest.mark.parametrize("kind", WRITERS)
def test_dsprites_truncated_file_error_names_it(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path, arrays())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=path.name):
        DSprites(tmp_path).validate()


def test_dsprites_damaged_data_error_names_file(tmp_path: Path) -> None:
    path = write_npz(tmp_path, arrays())
    content = bytearray(path.read_bytes())
    middle = content.index(b"imgs.npy") + 50_000
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        list(DSprites(tmp_path).read(0, 360))
    path.unlink()
    path = write_hdf5(tmp_path, arrays())
    with h5py.File(path) as file:
        offset = file["imgs"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        list(DSprites(tmp_path).read(0, 360))


def changed(**changes: np.ndarray) -> Arrays:
    return {**arrays(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(imgs=arrays()["imgs"].astype(bool)), r"imgs .*bool \(360, 64, 64\)"),
        (changed(imgs=arrays()["imgs"][:, :32]), r"imgs .*uint8 \(360, 32, 64\)"),
        (changed(latents_classes=arrays()["latents_classes"][:-1]), r"\[360, 359, 360\]"),
        (changed(latents_classes=arrays()["latents_classes"] + 1), "classes"),
        (changed(latents_classes=np.roll(arrays()["latents_classes"], 1, 0)), "classes"),
        (changed(latents_values=arrays()["latents_values"] + 7), "classes"),
        ({"imgs": arrays()["imgs"]}, "latents"),
    ],
)
@pytest.mark.parametrize("kind", ["deflated", "hdf5"])
def test_dsprites_wrong_structure_error_names_file(tmp_path: Path, kind: str, content: Arrays, message: str) -> None:
    if kind == "hdf5" and len(content) == 1:
        with h5py.File(tmp_path / HDF5.name, "w") as file:
            file["imgs"] = content["imgs"]
    else:
        WRITERS[kind](tmp_path, content)
    with pytest.raises(UserError, match=message):
        DSprites(tmp_path).validate()


def test_dsprites_other_pixels_error_names_file(tmp_path: Path) -> None:
    write_npz(tmp_path, changed(imgs=arrays()["imgs"] * np.uint8(2)))
    with pytest.raises(UserError, match=NPZ.name):
        list(DSprites(tmp_path).read(0, 1))


def npy(array: np.ndarray, **kwargs: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        npy(np.array([None] * 3), allow_pickle=True),
        b"not an array at all",
        npy(arrays()["imgs"])[:-1],
        npy(np.asfortranarray(arrays()["imgs"])),
        npy(np.zeros((), np.uint8)),
        b"\x93NUMPY\x07\x00" + bytes(200),
    ],
)
def test_dsprites_invalid_member_error_names_array(tmp_path: Path, member: bytes) -> None:
    with zipfile.ZipFile(tmp_path / NPZ.name, "w") as archive:
        archive.writestr("imgs.npy", member)
    with pytest.raises(UserError, match=f"{NPZ.name}.*imgs"):
        DSprites(tmp_path).validate()


def test_dsprites_link_to_other_file_raises(tmp_path: Path) -> None:
    write_hdf5(tmp_path, arrays()).rename(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / HDF5.name, "w") as file:
        file["imgs"] = h5py.ExternalLink("other.hdf5", "imgs")
    with pytest.raises(UserError, match=f"{HDF5.name}.*imgs"):
        DSprites(tmp_path).validate()
    layout = h5py.VirtualLayout(shape=(360, 64, 64), dtype="u1")
    layout[:] = h5py.VirtualSource("other.hdf5", "imgs", shape=(360, 64, 64))
    with h5py.File(tmp_path / HDF5.name, "w") as file:
        file.create_virtual_dataset("imgs", layout)
    with pytest.raises(UserError, match=f"{HDF5.name}.*imgs"):
        DSprites(tmp_path).validate()
