"""Test SVHN with files that SciPy and the format's own description make, streamed in ranges."""

import hashlib
import pickle
import struct
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from jobs.data.sources import svhn
from jobs.data.sources.svhn import Svhn
from jobs.errors import UserError

COUNTS = {"train": 300, "extra": 7, "test": 20}


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(order: str, name: str, array: np.ndarray) -> bytes:
    """A variable of uint8, as MathWorks describes it."""
    if len(name) <= 4:  # the short form, as MATLAB itself writes it
        small = (1 | len(name) << 16).to_bytes(4, "little" if order == "<" else "big")
        title = small + name.encode().ljust(4, b"\0")
    else:
        title = element(order, 1, name.encode())
    flags = element(order, 6, struct.pack(f"{order}II", 9, 0))
    sizes = element(order, 5, struct.pack(f"{order}{array.ndim}i", *array.shape))
    return element(order, 14, flags + sizes + title + element(order, 2, array.tobytes("F")))


def mat_file(order: str, variables: list[bytes], *, compress: bool) -> bytes:
    version = struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    content = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + version
    for variable in variables:
        if compress:
            squeezed = zlib.compress(variable, 1)
            variable = struct.pack(f"{order}II", 15, len(squeezed)) + squeezed
        content += variable
    return content


@pytest.fixture(scope="module")
def arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Subset -> X (32, 32, 3, N) and y (N, 1); smooth pixels, so that compression crosses the chunks' borders."""
    rng = np.random.default_rng(0)
    subsets = {}
    for subset, count in COUNTS.items():
        images = np.repeat(rng.integers(0, 256, (32, 4, 3, count), dtype=np.uint8), 8, axis=1)
        subsets[subset] = images, rng.integers(1, 11, (count, 1), dtype=np.uint8)
    return subsets


@pytest.fixture
def folder(arrays: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> Path:
    """train: by SciPy, compressed; extra: by SciPy, plain; test: as MATLAB has it, X last."""
    for subset, compress in (("train", True), ("extra", False)):
        images, labels = arrays[subset]
        savemat(tmp_path / f"{subset}_32x32.mat", {"X": images, "y": labels}, do_compression=compress)
    images, labels = arrays["test"]
    variables = [matrix("<", "a_longer_name", 255 - images), matrix("<", "y", labels), matrix("<", "X", images)]
    (tmp_path / "test_32x32.mat").write_bytes(mat_file("<", variables, compress=True))
    return tmp_path


def test_svhn_any_ranges_join_to_all_samples(arrays: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    source = pickle.loads(pickle.dumps(Svhn(folder, extra=True)))
    assert source.num_samples == 327
    assert source.image_shape == (32, 32, 3)
    assert source.sequential
    assert [(factor.name, factor.values) for factor in source.factors] == [("digit", tuple("0123456789"))]
    pixels = np.concatenate([arrays[subset][0].transpose(3, 0, 1, 2) for subset in COUNTS])
    digits = np.concatenate([arrays[subset][1][:, 0] for subset in COUNTS]) % 10
    assert (digits == 0).any()
    for cuts in ([0, 327], [0, 1, 255, 256, 258, 299, 303, 307, 326, 327]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        np.testing.assert_array_equal(np.stack([sample.image for sample in samples]), pixels)
        assert [sample.factors["digit"] for sample in samples] == digits.tolist()
    assert [sample.split for sample in samples] == ["train"] * 307 + ["test"] * 20
    assert samples[301].key == "extra-000001"
    assert len({sample.key for sample in samples}) == 327


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [True, False])
def test_svhn_both_byte_orders_are_read(
    arrays: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path, order: str, compress: bool
) -> None:
    images, labels = arrays["test"]
    variables = [matrix(order, "X", images), matrix(order, "y", labels)]
    (folder / "test_32x32.mat").write_bytes(mat_file(order, variables, compress=compress))
    samples = list(Svhn(folder, extra=False).read(303, 318))
    np.testing.assert_array_equal(np.stack([sample.image for sample in samples]), images.transpose(3, 0, 1, 2)[3:18])
    assert [sample.factors["digit"] for sample in samples] == (labels[3:18, 0] % 10).tolist()


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.uint8])
@pytest.mark.parametrize("count", [1, 4, 300])  # few numbers stand in the tag of their element
def test_svhn_labels_of_any_type_are_read(folder: Path, kind: type[np.generic], count: int) -> None:
    labels = np.arange(count)[:, None] % 10 + 1
    images = np.zeros((32, 32, 3, count), np.uint8)
    savemat(folder / "train_32x32.mat", {"y": labels.astype(kind), "X": images})
    samples = Svhn(folder, extra=False).read(0, count)
    assert [sample.factors["digit"] for sample in samples] == (labels[:, 0] % 10).tolist()


def test_svhn_missing_file_error_names_file_and_root(folder: Path) -> None:
    (folder / "extra_32x32.mat").unlink()
    assert Svhn(folder, extra=False).num_samples == 320
    with pytest.raises(UserError, match=r"data\.root=.*extra_32x32\.mat.*data=svhn"):
        Svhn(folder, extra=True).num_samples  # noqa: B018


def test_svhn_other_size_or_hash_gives_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [warning.split(":")[0] for warning in Svhn(folder, extra=False).validate()] == [
        str(folder / "train_32x32.mat"),
        str(folder / "test_32x32.mat"),
    ]
    subsets = []
    for name, split, file in svhn.SUBSETS:
        content = (folder / file.name).read_bytes()
        file = replace(file, num_bytes=len(content), md5=hashlib.md5(content).hexdigest())
        subsets.append((name, split, file))
    monkeypatch.setattr(svhn, "SUBSETS", tuple(subsets))
    assert Svhn(folder, extra=True).validate() == []


def test_svhn_fingerprint_changes_with_files_and_settings(folder: Path) -> None:
    plain = Svhn(folder, extra=False).fingerprint
    assert Svhn(folder, extra=False).fingerprint == plain
    assert Svhn(folder, extra=True).fingerprint != plain
    path = folder / "test_32x32.mat"
    path.write_bytes(path.read_bytes() + bytes(8))
    assert Svhn(folder, extra=False).fingerprint != plain


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"X": np.zeros((32, 32, 1, 5), np.uint8), "y": np.ones((5, 1))}, r"X .*uint8 \(32, 32, 1, 5\)"),
        ({"X": np.zeros((32, 32, 3, 5)), "y": np.ones((5, 1))}, "X .*float64"),
        ({"X": np.zeros((32, 32, 3, 5), np.int8), "y": np.ones((5, 1))}, "X .*int8"),
        ({"X": np.zeros((32, 32, 3, 5), np.complex128), "y": np.ones((5, 1))}, "X"),
        ({"X": "text", "y": np.ones((5, 1))}, "X"),
        ({"x": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((5, 1))}, "X"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "y"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((4, 1))}, r"y .*\(4, 1\)"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.full((5, 1), 11)}, "y"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.full((5, 1), np.nan)}, "y"),
    ],
)
@pytest.mark.parametrize("compress", [True, False])
def test_svhn_wrong_structure_error_names_file(
    folder: Path, variables: dict[str, np.ndarray], message: str, compress: bool
) -> None:
    savemat(folder / "test_32x32.mat", variables, do_compression=compress)
    with pytest.raises(UserError, match=rf"test_32x32\.mat: .*\b{message}") as caught:
        Svhn(folder, extra=False).validate()
    assert "\n" not in str(caught.value)


def test_svhn_damaged_file_error_names_it(folder: Path) -> None:
    path = folder / "train_32x32.mat"
    intact = path.read_bytes()
    for content in (b"", b"MATLAB 7.3 MAT-file".ljust(512, b" "), intact[:132], intact[:5000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train_32x32\.mat: "):
            Svhn(folder, extra=False).num_samples  # noqa: B018
    path.write_bytes(intact)
    source = Svhn(folder, extra=False)
    source.validate()
    length = struct.unpack_from("<I", intact, 132)[0]  # of X, whose stream ends with a checksum
    wrong_sum = intact[: 135 + length] + bytes([intact[135 + length] ^ 1]) + intact[136 + length :]
    for content in (intact[:9000] + bytes(1000) + intact[10000:], wrong_sum):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train_32x32\.mat: "):
            list(source.read(250, 300))
