"""SVHN: files that SciPy and the format's own description make, streamed in ranges."""

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
    """Part -> X (32, 32, 3, N) and y (N, 1); smooth pixels, so that compression crosses the chunks' borders."""
    rng = np.random.default_rng(0)
    found = {}
    for part, count in COUNTS.items():
        images = np.repeat(rng.integers(0, 256, (32, 4, 3, count), dtype=np.uint8), 8, axis=1)
        found[part] = images, rng.integers(1, 11, (count, 1), dtype=np.uint8)
    return found


@pytest.fixture
def folder(arrays: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> Path:
    """train: by SciPy, compressed; extra: by SciPy, plain; test: as MATLAB has it, X last."""
    for part, compress in (("train", True), ("extra", False)):
        images, labels = arrays[part]
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": labels}, do_compression=compress)
    images, labels = arrays["test"]
    variables = [matrix("<", "a_longer_name", 255 - images), matrix("<", "y", labels), matrix("<", "X", images)]
    (tmp_path / "test_32x32.mat").write_bytes(mat_file("<", variables, compress=True))
    return tmp_path


def test_ranges_join_to_the_whole(arrays: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    source = pickle.loads(pickle.dumps(Svhn(folder, extra=True)))
    assert source.num_samples == 327
    assert source.image_shape == (32, 32, 3)
    assert source.sequential
    assert [(factor.name, factor.values) for factor in source.factors] == [("digit", tuple("0123456789"))]
    pixels = np.concatenate([arrays[part][0].transpose(3, 0, 1, 2) for part in COUNTS])
    digits = np.concatenate([arrays[part][1][:, 0] for part in COUNTS]) % 10
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
def test_both_byte_orders(
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
def test_labels_of_any_kind(folder: Path, kind: type[np.generic], count: int) -> None:
    labels = np.arange(count)[:, None] % 10 + 1
    images = np.zeros((32, 32, 3, count), np.uint8)
    savemat(folder / "train_32x32.mat", {"y": labels.astype(kind), "X": images})
    samples = Svhn(folder, extra=False).read(0, count)
    assert [sample.factors["digit"] for sample in samples] == (labels[:, 0] % 10).tolist()


def test_missing_files_are_asked_for(folder: Path) -> None:
    (folder / "extra_32x32.mat").unlink()
    assert Svhn(folder, extra=False).num_samples == 320
    with pytest.raises(UserError, match=r"data=svhn needs extra_32x32\.mat .*put that into data\.root="):
        Svhn(folder, extra=True).num_samples  # noqa: B018


def test_check_remarks_on_other_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [remark.split()[0] for remark in Svhn(folder, extra=False).check()] == [
        str(folder / "train_32x32.mat"),
        str(folder / "test_32x32.mat"),
    ]
    parts = []
    for part, split, file in svhn.PARTS:
        content = (folder / file.name).read_bytes()
        file = replace(file, num_bytes=len(content), md5=hashlib.md5(content).hexdigest())
        parts.append((part, split, file))
    monkeypatch.setattr(svhn, "PARTS", tuple(parts))
    assert Svhn(folder, extra=True).check() == []


def test_fingerprint_follows_files_and_settings(folder: Path) -> None:
    plain = Svhn(folder, extra=False).fingerprint
    assert Svhn(folder, extra=False).fingerprint == plain
    assert Svhn(folder, extra=True).fingerprint != plain
    path = folder / "test_32x32.mat"
    path.write_bytes(path.read_bytes() + bytes(8))
    assert Svhn(folder, extra=False).fingerprint != plain


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"X": np.zeros((32, 32, 1, 5), np.uint8), "y": np.ones((5, 1))}, r"X of uint8 \(32, 32, 1, 5\)"),
        ({"X": np.zeros((32, 32, 3, 5)), "y": np.ones((5, 1))}, "X of float64"),
        ({"X": np.zeros((32, 32, 3, 5), np.int8), "y": np.ones((5, 1))}, "X of int8"),
        ({"X": np.zeros((32, 32, 3, 5), np.complex128), "y": np.ones((5, 1))}, "not an array of real numbers"),
        ({"X": "text", "y": np.ones((5, 1))}, "not an array of real numbers"),
        ({"x": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((5, 1))}, "no variable X"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "no variable y"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((4, 1))}, r"\(4, 1\), and 5 images"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.full((5, 1), 11)}, "other than 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.full((5, 1), np.nan)}, "other than 1 to 10"),
    ],
)
@pytest.mark.parametrize("compress", [True, False])
def test_wrong_structure_is_an_error(
    folder: Path, variables: dict[str, np.ndarray], message: str, compress: bool
) -> None:
    savemat(folder / "test_32x32.mat", variables, do_compression=compress)
    with pytest.raises(UserError, match=rf"test_32x32\.mat has .*{message}") as caught:
        Svhn(folder, extra=False).check()
    assert "\n" not in str(caught.value)


def test_damage_is_an_error(folder: Path) -> None:
    path = folder / "train_32x32.mat"
    good = path.read_bytes()
    for content, message in (
        (b"", "is not a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(512, b" "), "is not a MATLAB 5 file"),
        (good[:132], "is damaged"),
        (good[:5000], "is damaged .*should be"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"train_32x32\.mat {message}"):
            Svhn(folder, extra=False).num_samples  # noqa: B018
    path.write_bytes(good)
    source = Svhn(folder, extra=False)
    source.check()
    length = struct.unpack_from("<I", good, 132)[0]  # of X, whose stream ends with a checksum
    wrong_sum = good[: 135 + length] + bytes([good[135 + length] ^ 1]) + good[136 + length :]
    for content in (good[:9000] + bytes(1000) + good[10000:], wrong_sum):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train_32x32\.mat is damaged"):
            list(source.read(250, 300))
