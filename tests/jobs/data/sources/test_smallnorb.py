"""Test Small NORB with binary matrices as the publisher describes them, plain or compressed."""

import gzip
import hashlib
import pickle
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.sources import smallnorb
from jobs.data.sources.smallnorb import SmallNorb
from jobs.errors import UserError

TRAINING, TESTING = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
COUNTS = {TRAINING: 300, TESTING: 10}
Arrays = dict[str, dict[str, np.ndarray]]


def binary_matrix(array: np.ndarray) -> bytes:
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54, "int16": 0x1E3D4C56}[array.dtype.name]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return struct.pack(f"<II{len(sizes)}I", magic, array.ndim, *sizes) + array.tobytes()


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    subsets = {}
    for subset, count in COUNTS.items():
        info = [rng.integers(0, size, count) * step for size, step in ((10, 1), (9, 1), (18, 2), (6, 1))]
        subsets[subset] = {
            "dat": rng.integers(0, 256, (count, 2, 96, 96), dtype=np.uint8),
            "cat": rng.integers(0, 5, count).astype("<i4"),
            "info": np.stack(info, axis=1).astype("<i4"),
        }
    return subsets


@pytest.fixture
def folder(arrays: Arrays, tmp_path: Path) -> Path:
    """Training plain, testing as .gz."""
    for subset, kinds in arrays.items():
        for kind, array in kinds.items():
            content = binary_matrix(array)
            if subset == TESTING:
                (tmp_path / f"{subset}-{kind}.mat.gz").write_bytes(gzip.compress(content, 1))
            else:
                (tmp_path / f"{subset}-{kind}.mat").write_bytes(content)
    return tmp_path


def test_smallnorb_any_ranges_join_to_all_samples(arrays: Arrays, folder: Path) -> None:
    source = pickle.loads(pickle.dumps(SmallNorb(folder, 96)))
    assert source.num_samples == 310
    assert source.image_shape == (96, 96, 1)
    sizes = {"category": 5, "instance": 10, "elevation": 9, "azimuth": 18, "lighting": 6}
    assert {factor.name: len(factor.values) for factor in source.factors} == sizes
    left = np.concatenate([arrays[subset]["dat"][:, 0] for subset in COUNTS])
    stored = np.concatenate([np.column_stack([arrays[subset]["cat"], arrays[subset]["info"]]) for subset in COUNTS])
    for cuts in ([0, 310], [0, 1, 256, 258, 299, 303, 310]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        np.testing.assert_array_equal(np.stack([sample.image for sample in samples])[..., 0], left)
        actual = np.array([[sample.factors[name] for name in sizes] for sample in samples])
        np.testing.assert_array_equal(actual, stored // [1, 1, 1, 2, 1])
    assert [sample.split for sample in samples] == ["train"] * 300 + ["test"] * 10
    assert samples[302].key == "test-00002"
    assert len({sample.key for sample in samples}) == 310


def test_smallnorb_factor_values_are_published_angles(folder: Path) -> None:
    values = {factor.name: factor.values for factor in SmallNorb(folder, 96).factors}
    assert (values["elevation"][0], values["elevation"][-1]) == (30, 70)
    assert values["azimuth"][-1] == 340  # stored as 34


def test_smallnorb_images_are_resized(arrays: Arrays, folder: Path) -> None:
    source = SmallNorb(folder, 64)
    image = next(source.read(304, 305)).image
    expected = Image.fromarray(arrays[TESTING]["dat"][4, 0]).resize((64, 64), Image.Resampling.LANCZOS)
    assert image.shape == source.image_shape == (64, 64, 1)
    np.testing.assert_array_equal(image[..., 0], np.asarray(expected))


def test_smallnorb_missing_file_error_names_file_and_root(folder: Path) -> None:
    (folder / f"{TRAINING}-cat.mat").unlink()
    with pytest.raises(UserError, match=rf"data\.root=.*{TRAINING}-cat\.mat\.gz.*data=smallnorb"):
        SmallNorb(folder, 64).num_samples  # noqa: B018


def test_smallnorb_other_hash_gives_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(SmallNorb(folder, 64).validate()) == 6
    hashes = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    files = {name: (hashes.get(name, "0"), hashes.get(f"{name}.gz", "0")) for name in smallnorb.FILES}
    monkeypatch.setattr(smallnorb, "FILES", files)
    assert SmallNorb(folder, 64).validate() == []


def test_smallnorb_fingerprint_and_sequential_follow_files(folder: Path) -> None:
    before = SmallNorb(folder, 64).fingerprint
    assert SmallNorb(folder, 64).fingerprint == before
    assert SmallNorb(folder, 96).fingerprint != before
    assert SmallNorb(folder, 64).sequential
    for path in folder.glob("*-dat.mat.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    assert SmallNorb(folder, 64).fingerprint != before
    assert not SmallNorb(folder, 64).sequential


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("dat", b""),
        ("dat", b"MATLAB 5.0 MAT-file".ljust(200)),
        ("dat", binary_matrix(np.zeros((300, 2, 96, 96), np.int16))),
        ("dat", binary_matrix(np.zeros((300, 2, 64, 64), np.uint8))),
        ("dat", binary_matrix(np.zeros((300, 2, 96, 96), np.uint8))[:-1]),
        ("dat", binary_matrix(np.zeros((300, 2, 96, 96), np.uint8))[:20]),
        ("cat", binary_matrix(np.zeros(300, np.uint8))),
        ("cat", binary_matrix(np.zeros(299, np.int32))),
        ("cat", binary_matrix(np.zeros(300, np.int32))[:-1]),
        ("cat", binary_matrix(np.zeros(300, np.int32)) + b"0"),
        ("cat", binary_matrix(np.full(300, 5, np.int32))),
        ("info", binary_matrix(np.full((300, 4), 9, np.int32))),
        ("info", binary_matrix(np.full((300, 4), 7, np.int32))),
        ("info", binary_matrix(np.full((300, 4), -1, np.int32))),
        ("info", binary_matrix(np.zeros((300, 5), np.int32))),
    ],
)
def test_smallnorb_wrong_structure_error_names_file(folder: Path, kind: str, content: bytes) -> None:
    (folder / f"{TRAINING}-{kind}.mat").write_bytes(content)
    with pytest.raises(UserError, match=rf"training-{kind}\.mat: ") as caught:
        SmallNorb(folder, 64).validate()
    assert "\n" not in str(caught.value)


def test_smallnorb_damaged_file_error_names_it(folder: Path) -> None:
    path = folder / f"{TESTING}-dat.mat.gz"
    source = SmallNorb(folder, 64)
    source.validate()
    path.write_bytes(path.read_bytes()[:-5000])
    assert len(list(source.read(298, 302))) == 4
    for act in (source.validate, lambda: list(source.read(305, 310))):
        with pytest.raises(UserError, match=r"testing-dat\.mat\.gz: "):
            act()
