"""Test 3D Shapes with small files of its format: chunks of few pixels of many images, labels that are values."""

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest

from jobs.data.sources.shapes3d import Shapes3D
from jobs.errors import UserError

VALUES = ((0.0, 0.1, 0.2), (0.0, 0.5), (0.3, 0.9), (0.75, 1.25), (0.0, 1.0, 2.0, 3.0), (-30.0, 0.0, 30.0))
NAMES = ["floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"]
LABELS = np.array(list(itertools.product(*VALUES)))
IMAGES = np.random.default_rng(0).integers(0, 9, (len(LABELS), 64, 64, 3), dtype=np.uint8)


def write(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, length: int = 100) -> Path:
    path = folder / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(length, 32, 32, 1), compression="gzip")
        file.create_dataset("labels", data=labels, compression="gzip")
    return path


def test_shapes3d_content_equals_file(tmp_path: Path) -> None:
    write(tmp_path)
    source = Shapes3D(tmp_path)
    assert (source.num_samples, source.image_shape, source.sequential) == (288, (64, 64, 3), False)
    assert [(factor.name, factor.values) for factor in source.factors] == list(zip(NAMES, VALUES, strict=True))
    samples = list(source.read(0, 288))
    assert len({sample.key for sample in samples}) == 288
    for sample, image, labels in zip(samples, IMAGES, LABELS, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        assert list(sample.factors) == NAMES
        actual = [values[sample.factors[name]] for name, values in zip(NAMES, VALUES, strict=True)]
        assert actual == labels.tolist()


@pytest.mark.parametrize("length", [7, 100, 288])
def test_shapes3d_any_ranges_join_to_all_samples(tmp_path: Path, length: int) -> None:
    write(tmp_path, length=length)
    source = Shapes3D(tmp_path)
    joined = [sample for start in range(0, 288, 50) for sample in source.read(start, min(start + 50, 288))]
    assert [sample.key for sample in joined] == [sample.key for sample in source.read(0, 288)]
    assert all(np.array_equal(sample.image, image) for sample, image in zip(joined, IMAGES, strict=True))


def test_hdf5_blocks_end_with_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block holds as many whole chunks as fit, so that no chunk is decompressed twice."""
    monkeypatch.setattr("jobs.data.formats.hdf5._BLOCK", 250 * 64 * 64 * 3)
    write(tmp_path)
    blocks = list(Shapes3D(tmp_path)._arrays[0].blocks(30, 288))
    assert [len(block) for block in blocks] == [170, 88]
    np.testing.assert_array_equal(np.concatenate(blocks), IMAGES[30:])


def test_shapes3d_warnings_and_fingerprint_follow_file(tmp_path: Path) -> None:
    write(tmp_path)
    [warning] = Shapes3D(tmp_path).validate()
    assert "267,573,662" in warning
    before = Shapes3D(tmp_path).fingerprint
    assert Shapes3D(tmp_path).fingerprint == before
    write(tmp_path, images=IMAGES + np.uint8(1))
    assert Shapes3D(tmp_path).fingerprint != before


def test_shapes3d_missing_file_error_names_file_and_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}.*3dshapes\.h5"):
        Shapes3D(tmp_path).validate()


def test_shapes3d_truncated_file_error_names_it(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"3dshapes\.h5"):
        Shapes3D(tmp_path).validate()
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"3dshapes\.h5"):
        Shapes3D(tmp_path).validate()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"images .*float32 \(288, 64, 64, 3\)"),
        (IMAGES[:, :32], LABELS, r"images .*uint8 \(288, 32, 64, 3\)"),
        (IMAGES, LABELS[:, :5], r"labels .*float64 \(288, 5\)"),
        (IMAGES, LABELS[:-1], "288 .*287"),
        (IMAGES, LABELS * np.nan, "labels"),
    ],
)
def test_shapes3d_wrong_structure_error_names_array(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    write(tmp_path, images, labels)
    with pytest.raises(UserError, match=rf"3dshapes\.h5: .*{message}"):
        Shapes3D(tmp_path).validate()


def test_shapes3d_missing_array_error_names_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file.create_group("images")
    with pytest.raises(UserError, match=r"3dshapes\.h5: .*images"):
        Shapes3D(tmp_path).validate()
