"""MNIST and Fashion-MNIST: read from plain and compressed IDX files, verified, and fetched."""

import gzip
import hashlib
import os
import pickle
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jobs.data.sources.build import open_source
from jobs.data.sources.config import DEBIAN_FASHION_MNIST, FashionMnistConfig, MnistConfig
from jobs.data.sources.mnist import FASHION_MNIST, MNIST, IdxDataset, IdxImages, download
from jobs.errors import UserError

NAMES = [name for name, _ in FASHION_MNIST.files]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for part, count in (("train", 600), ("t10k", 300)):
        found[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        found[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    return found


@pytest.fixture
def folder(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """The training files plain, the others compressed."""
    for name, array in arrays.items():
        if name.startswith("train"):
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
    return tmp_path


@pytest.fixture
def fashion(arrays: dict[str, np.ndarray]) -> IdxDataset:
    """Fashion-MNIST as if our content were the published one."""
    hashes = tuple((name, hashlib.sha256(idx(array)).hexdigest()) for name, array in arrays.items())
    return replace(FASHION_MNIST, files=hashes)


def test_across_the_two_files(fashion: IdxDataset, arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(fashion, folder, 28)
    assert source.check() == []
    assert source.num_samples == 900
    assert [(factor.name, len(factor.values)) for factor in source.factors] == [("class", 10)]
    samples = list(source.read(598, 603))
    assert [sample.split for sample in samples] == ["train", "train", "test", "test", "test"]
    assert [sample.key for sample in samples] == [
        "train-00598",
        "train-00599",
        "t10k-00000",
        "t10k-00001",
        "t10k-00002",
    ]
    np.testing.assert_array_equal(samples[1].image[..., 0], arrays["train-images-idx3-ubyte"][599])
    np.testing.assert_array_equal(samples[4].image[..., 0], arrays["t10k-images-idx3-ubyte"][2])
    assert samples[4].factors == {"class": arrays["t10k-labels-idx1-ubyte"][2]}


def test_ranges_join_to_the_whole(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = pickle.loads(pickle.dumps(IdxImages(MNIST, folder, 28)))
    pixels = np.concatenate([arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]])
    labels = np.concatenate([arrays["train-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"]])
    for cuts in ([0, 900], [0, 1, 300, 599, 601, 857, 900]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        np.testing.assert_array_equal(np.stack([sample.image for sample in samples])[..., 0], pixels)
        assert [sample.factors["digit"] for sample in samples] == labels.tolist()
        assert len({sample.key for sample in samples}) == 900


def test_border(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(MNIST, folder, 32)
    image = next(source.read(600, 601)).image
    assert image.shape == source.image_shape == (32, 32, 1)
    assert image[:2].max() == image[-2:].max() == image[:, :2].max() == image[:, -2:].max() == 0
    np.testing.assert_array_equal(image[2:-2, 2:-2, 0], arrays["t10k-images-idx3-ubyte"][0])


def test_other_content_of_fashion_mnist_is_refused(fashion: IdxDataset, folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    source = IdxImages(fashion, folder, 28)
    assert source.num_samples == 900
    for content, message in ((gzip.compress(b"something else"), "not the published file"), (good[:50], "is damaged")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            source.check()
        with pytest.raises(UserError, match=message):  # where it is read may be another machine
            next(source.read(600, 601))


def test_other_content_of_mnist_is_remarked_and_used(folder: Path) -> None:
    files = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    published = replace(MNIST, files=tuple((name, files.get(f"{name}.gz", "0")) for name in NAMES))
    assert IdxImages(published, folder, 28).check() == []
    remarks = IdxImages(MNIST, folder, 28).check()
    assert len(remarks) == 2  # the plain files have no known hash
    assert "t10k-images-idx3-ubyte.gz has md5" in remarks[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-labels-idx1-ubyte", b"", "magic number"),
        ("t10k-labels-idx1-ubyte", b"\x00\x00\x08", "magic number"),
        ("t10k-labels-idx1-ubyte", b"\x1f\x8b\x08\x00abcdef", "magic number"),
        ("train-labels-idx1-ubyte", idx(np.zeros(600))[:-1], "should hold 600 bytes"),
        ("train-labels-idx1-ubyte", idx(np.zeros(600)) + b"0", "should hold 600 bytes"),
        ("train-labels-idx1-ubyte", idx(np.zeros(599)), "there are 600 images"),
        ("train-images-idx3-ubyte", idx(np.zeros((600, 28, 27))), "not of images 28x28"),
    ],
)
def test_wrong_structure_is_an_error(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} .*{message}"):
        IdxImages(MNIST, folder, 28).check()


def test_what_breaks_while_it_is_read(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(MNIST, folder, 28)
    source.check()
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(600, 10)))
    with pytest.raises(UserError, match="train-labels-idx1-ubyte has the label 10"):
        next(source.read(3, 4))
    labels.write_bytes(idx(np.zeros(600))[:-10])
    with pytest.raises(UserError, match="train-labels-idx1-ubyte ends before item 600"):
        list(source.read(500, 600))
    images = folder / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        list(source.read(800, 900))
    images.unlink()
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte is gone"):
        list(source.read(800, 900))


def test_fingerprint_and_order_of_reading(fashion: IdxDataset, folder: Path) -> None:
    before = [IdxImages(dataset, folder, 28).fingerprint for dataset in (fashion, MNIST)]
    assert IdxImages(MNIST, folder, 28).sequential
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert not IdxImages(MNIST, folder, 28).sequential
    after = [IdxImages(dataset, folder, 28).fingerprint for dataset in (fashion, MNIST)]
    assert before[0] == after[0]  # the content is the published one
    assert before[1] != after[1]
    assert IdxImages(fashion, folder, 32).fingerprint != after[0]


@pytest.mark.skipif(
    not (DEBIAN_FASHION_MNIST / "t10k-images-idx3-ubyte.gz").exists() and "CI" not in os.environ,
    reason="Debian's dataset-fashion-mnist is not installed",
)
def test_debians_files_are_the_published_ones(tmp_path: Path) -> None:
    source = open_source(FashionMnistConfig(), tmp_path, fetch=False)
    assert source.num_samples == 70_000
    first = next(source.read(60_000, 60_001))
    assert first.factors == {"class": 9}  # an ankle boot
    assert first.image.sum() > 10_000


@pytest.mark.parametrize("section", [FashionMnistConfig, MnistConfig])
def test_missing_files_are_listed(tmp_path: Path, section: type[FashionMnistConfig | MnistConfig]) -> None:
    for name in NAMES[1:]:
        (tmp_path / name).touch()
    for fetch in (True, False):  # who names a folder wants what is in it
        config = section(root=tmp_path, download=fetch)
        with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte \(plain or .gz\): put them there"):
            open_source(config, tmp_path / "downloads", fetch=True)


def test_mnist_of_the_default_folder_or_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    downloads = tmp_path_factory.mktemp("downloads")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(UserError, match=r"datasets/mnist lacks train-images"):
        open_source(MnistConfig(), downloads, fetch=False)
    (downloads / "mnist").symlink_to(folder)
    assert open_source(MnistConfig(download=False), downloads, fetch=False).num_samples == 900
    Path("datasets").mkdir()
    Path("datasets/mnist").symlink_to(folder)
    source = open_source(MnistConfig(image_size=32), downloads, fetch=True)
    assert source == IdxImages(MNIST, Path.cwd() / "datasets/mnist", 32)


@pytest.mark.parametrize("hashed", ["content", "gz"])
def test_download_is_verified(tmp_path: Path, hashed: str) -> None:
    """A file:// address stands for the publisher's."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NAMES:
        (site / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    if hashed == "content":
        files = tuple((name, hashlib.sha256(name.encode()).hexdigest()) for name in NAMES)
    else:
        files = tuple((name, hashlib.md5((site / f"{name}.gz").read_bytes()).hexdigest()) for name in NAMES)
    dataset = replace(FASHION_MNIST if hashed == "content" else MNIST, files=files, address=site.as_uri())
    download(dataset, tmp_path / "good")
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for content in (gzip.compress(b"<html>moved</html>"), b"<html>moved</html>"):
        (site / f"{NAMES[2]}.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"{NAMES[2]}.*something else"):
            download(dataset, tmp_path / "bad")
        assert sorted(path.name for path in (tmp_path / "bad").iterdir()) == sorted(f"{name}.gz" for name in NAMES[:2])
    (site / f"{NAMES[2]}.gz").unlink()
    with pytest.raises(UserError, match=r"MNIST is not on this machine and .*cannot be reached.*data\.root"):
        download(dataset, tmp_path / "away")
