"""Test Cars3D with a tar.gz of MATLAB files that SciPy writes."""

import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jobs.data.sources import cars3d
from jobs.data.sources.cars3d import Cars3d
from jobs.errors import UserError

ARCHIVE = "nips2015-analogy-data.tar.gz"
CARS = (10, 2, 33)  # in the order of the archive; by name, 10 is the second


def mat(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    savemat(file, {"mask": np.ones((2, 2)), "im": array}, do_compression=True)
    return file.getvalue()


def write_archive(folder: Path, members: dict[str, bytes]) -> None:
    with gzip.open(folder / ARCHIVE, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def images() -> dict[int, np.ndarray]:
    """Car -> im, in blocks of 16 pixels, so that it is quick to compress."""
    rng = np.random.default_rng(0)
    small = {car: rng.integers(0, 256, (8, 8, 3, 24, 4), dtype=np.uint8) for car in CARS}
    return {car: array.repeat(16, axis=0).repeat(16, axis=1) for car, array in small.items()}


@pytest.fixture(scope="module")
def members(images: dict[int, np.ndarray]) -> dict[str, bytes]:
    cars = {f"data/cars/car_{car:03d}_mesh.mat": mat(array) for car, array in images.items()}
    others = {"data/cars/list.txt": b"car_002_mesh\n", "data/shapes48.mat": bytes(10_000)}
    return others | cars | {"data/sprites/car.mat": b"another"}


@pytest.fixture(scope="module")
def folder(members: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cars")
    write_archive(path, members)
    return path


def test_cars3d_any_ranges_join_to_all_samples(images: dict[int, np.ndarray], folder: Path) -> None:
    source = pickle.loads(pickle.dumps(Cars3d(folder, 128)))
    assert source.num_samples == 3 * 96
    assert source.image_shape == (128, 128, 3)
    assert source.sequential
    assert {factor.name: len(factor.values) for factor in source.factors} == {
        "elevation": 4,
        "azimuth": 24,
        "object": 3,
    }
    assert source.factors[2].values == (2, 10, 33)
    expected = [(car, elevation, azimuth) for car in CARS for elevation in range(4) for azimuth in range(24)]
    for cuts in ([0, 288], [0, 1, 95, 97, 192, 193, 288]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        assert len(samples) == 288
        for sample, (car, elevation, azimuth) in zip(samples, expected, strict=True):
            assert sample.factors == {"elevation": elevation, "azimuth": azimuth, "object": sorted(CARS).index(car)}
            np.testing.assert_array_equal(sample.image, images[car][..., azimuth, elevation])
    assert samples[97].key == "002-0-01"
    assert samples[97].split is None
    assert len({sample.key for sample in samples}) == 288


def test_cars3d_images_are_resized(images: dict[int, np.ndarray], folder: Path) -> None:
    source = Cars3d(folder, 64)
    image = next(source.read(100, 101)).image
    expected = Image.fromarray(np.ascontiguousarray(images[2][..., 4, 0])).resize((64, 64), Image.Resampling.LANCZOS)
    assert image.shape == source.image_shape == (64, 64, 3)
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_cars3d_missing_file_error_names_file_and_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}.*{ARCHIVE}.*data=cars3d"):
        Cars3d(tmp_path, 64).num_samples  # noqa: B018


def test_cars3d_other_hash_gives_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings = Cars3d(folder, 64).validate()
    assert len(warnings) == 1
    assert f"{ARCHIVE}: md5" in warnings[0]
    digest = hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(cars3d, "FILES", (replace(cars3d.FILES[0], md5=digest),))
    assert Cars3d(folder, 64).validate() == []


def test_cars3d_fingerprint_changes_with_file_and_size(folder: Path, tmp_path: Path) -> None:
    before = Cars3d(folder, 64).fingerprint
    assert Cars3d(folder, 64).fingerprint == before
    assert Cars3d(folder, 128).fingerprint != before
    write_archive(tmp_path, {"car_001_mesh.mat": b""})
    assert Cars3d(tmp_path, 64).fingerprint != before


@pytest.mark.parametrize("names", [["data/list.txt"], ["a/car_2_mesh.mat", "a/car_002_mesh.mat"]])
def test_cars3d_no_or_duplicate_cars_raises(tmp_path: Path, names: list[str]) -> None:
    write_archive(tmp_path, dict.fromkeys(names, b""))
    with pytest.raises(UserError, match=ARCHIVE):
        Cars3d(tmp_path, 64).validate()


@pytest.mark.parametrize(
    "content",
    [
        mat(np.zeros((128, 128, 3, 24, 3), np.uint8)),
        mat(np.zeros((2, 2))),
        mat(np.zeros((2, 2)))[:200],
        b"not a MATLAB file at all",
    ],
)
def test_cars3d_wrong_structure_error_names_member(tmp_path: Path, content: bytes) -> None:
    write_archive(tmp_path, {"data/cars/car_007_mesh.mat": content})
    with pytest.raises(UserError, match=rf"car_7_mesh\.mat in .*{ARCHIVE}") as caught:
        Cars3d(tmp_path, 64).validate()
    assert "\n" not in str(caught.value)


def test_cars3d_damaged_archive_error_names_it(folder: Path, members: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    intact = (folder / ARCHIVE).read_bytes()
    path.write_bytes(intact)
    source = Cars3d(tmp_path, 64)
    assert source.num_samples == 288
    tar = gzip.decompress(intact)
    inside = tar.index(members["data/cars/car_033_mesh.mat"]) + 1000
    for content in (
        intact[:-4],
        intact[: len(intact) // 2],
        intact[:-8] + bytes(4) + intact[-4:],  # the checksum
        gzip.compress(tar[:inside], 1),
        gzip.compress(b"no archive" * 1000, 1),
        b"<html>moved</html>",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=ARCHIVE) as caught:
            Cars3d(tmp_path, 64).num_samples  # noqa: B018
        assert "\n" not in str(caught.value)
    path.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match=ARCHIVE):  # complete when it was listed
        list(source.read(200, 288))
