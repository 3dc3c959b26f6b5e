"""Test MNIST and Fashion-MNIST: read from plain and compressed IDX files, verified, and downloaded."""

import gzip
import hashlib
import os
import pickle
import struct
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from servers.http import Request, reply, serve

from jobs import http_limits
from jobs.data.download import download
from jobs.data.sources.mnist import (
    DEBIAN_FASHION_MNIST,
    FASHION_MNIST,
    MNIST,
    FashionMnistConfig,
    IdxDataset,
    IdxImages,
    MnistConfig,
    download_missing,
)
from jobs.errors import UserError

NAMES = [name for name, _ in FASHION_MNIST.files]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    contents = {}
    for subset, count in (("train", 600), ("t10k", 300)):
        contents[f"{subset}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{subset}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    return contents


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
    """Return Fashion-MNIST with the hashes of the test files."""
    hashes = tuple((name, hashlib.sha256(idx(array)).hexdigest()) for name, array in arrays.items())
    return replace(FASHION_MNIST, files=hashes)


def test_idx_range_across_two_files_is_read(fashion: IdxDataset, arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(fashion, folder, 28)
    assert source.validate() == []
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


def test_idx_any_ranges_join_to_all_samples(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = pickle.loads(pickle.dumps(IdxImages(MNIST, folder, 28)))
    pixels = np.concatenate([arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]])
    labels = np.concatenate([arrays["train-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"]])
    for cuts in ([0, 900], [0, 1, 300, 599, 601, 857, 900]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        np.testing.assert_array_equal(np.stack([sample.image for sample in samples])[..., 0], pixels)
        assert [sample.factors["digit"] for sample in samples] == labels.tolist()
        assert len({sample.key for sample in samples}) == 900


def test_idx_size_32_adds_black_border(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(MNIST, folder, 32)
    image = next(source.read(600, 601)).image
    assert image.shape == source.image_shape == (32, 32, 1)
    assert image[:2].max() == image[-2:].max() == image[:, :2].max() == image[:, -2:].max() == 0
    np.testing.assert_array_equal(image[2:-2, 2:-2, 0], arrays["t10k-images-idx3-ubyte"][0])


def test_fashion_mnist_other_content_raises(fashion: IdxDataset, folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    intact = path.read_bytes()
    source = IdxImages(fashion, folder, 28)
    assert source.num_samples == 900
    for content in (gzip.compress(b"something else"), intact[:50]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            source.validate()
        with pytest.raises(UserError, match=path.name):  # because another machine may read the file
            next(source.read(600, 601))


def test_mnist_other_content_gives_warning(folder: Path) -> None:
    files = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    published = replace(MNIST, files=tuple((name, files.get(f"{name}.gz", "0")) for name in NAMES))
    assert IdxImages(published, folder, 28).validate() == []
    warnings = IdxImages(MNIST, folder, 28).validate()
    assert len(warnings) == 2  # the plain files have no known hash
    assert "t10k-images-idx3-ubyte.gz: md5" in warnings[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t10k-labels-idx1-ubyte", b""),
        ("t10k-labels-idx1-ubyte", b"\x00\x00\x08"),
        ("t10k-labels-idx1-ubyte", b"\x1f\x8b\x08\x00abcdef"),
        ("train-labels-idx1-ubyte", idx(np.zeros(600))[:-1]),
        ("train-labels-idx1-ubyte", idx(np.zeros(600)) + b"0"),
        ("train-labels-idx1-ubyte", idx(np.zeros(599))),
        ("train-images-idx3-ubyte", idx(np.zeros((600, 28, 27)))),
    ],
)
def test_idx_wrong_structure_error_names_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: "):
        IdxImages(MNIST, folder, 28).validate()


def test_idx_file_damaged_later_error_names_it(arrays: dict[str, np.ndarray], folder: Path) -> None:
    source = IdxImages(MNIST, folder, 28)
    source.validate()
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.full(600, 10)))
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: "):
        next(source.read(3, 4))
    labels.write_bytes(idx(np.zeros(600))[:-10])
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: "):
        list(source.read(500, 600))
    images = folder / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz: "):
        list(source.read(800, 900))
    images.unlink()
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte: "):
        list(source.read(800, 900))


def test_idx_fingerprint_and_sequential_follow_files(fashion: IdxDataset, folder: Path) -> None:
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
def test_fashion_mnist_of_debian_is_published_one(tmp_path: Path) -> None:
    source = FashionMnistConfig().locate(tmp_path, fetch=False).open()
    assert source.num_samples == 70_000
    first = next(source.read(60_000, 60_001))
    assert first.factors == {"class": 9}  # an ankle boot
    assert first.image.sum() > 10_000


@pytest.mark.parametrize("section", [FashionMnistConfig, MnistConfig])
def test_idx_config_missing_files_error_names_root(
    tmp_path: Path, section: type[FashionMnistConfig | MnistConfig]
) -> None:
    for name in NAMES[1:]:
        (tmp_path / name).touch()
    for fetch in (True, False):  # a root that the user set is never replaced
        config = section(root=tmp_path, download=fetch)
        with pytest.raises(UserError, match=rf"data\.root={tmp_path}.*train-images-idx3-ubyte"):
            config.locate(tmp_path / "downloads", fetch=True).open()


def test_mnist_config_uses_default_root_or_downloads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    downloads = tmp_path_factory.mktemp("downloads")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(UserError, match=r"data\.root=.*datasets/mnist.*train-images"):
        MnistConfig().locate(downloads, fetch=False).open()
    (downloads / "mnist").symlink_to(folder)
    assert MnistConfig(download=False).locate(downloads, fetch=False).open().num_samples == 900
    Path("datasets").mkdir()
    Path("datasets/mnist").symlink_to(folder)
    source = MnistConfig(image_size=32).locate(downloads, fetch=True).open()
    assert source == IdxImages(MNIST, Path.cwd() / "datasets/mnist", 32)


@pytest.mark.parametrize("hashed", ["content", "gz"])
def test_download_other_content_is_rejected(tmp_path: Path, hashed: str) -> None:
    site = {f"/{name}.gz": gzip.compress(name.encode()) for name in NAMES}
    if hashed == "content":
        files = tuple((name, hashlib.sha256(name.encode()).hexdigest()) for name in NAMES)
    else:
        files = tuple((name, hashlib.md5(site[f"/{name}.gz"]).hexdigest()) for name in NAMES)

    def respond(request: Request) -> None:
        reply(request, 200 if request.path in site else 404, site.get(request.path, b""))

    with serve(respond) as address:
        dataset = replace(FASHION_MNIST if hashed == "content" else MNIST, files=files, address=address)
        download_missing(dataset, tmp_path / "complete")
        assert names_in(tmp_path / "complete") == sorted(f"{name}.gz" for name in NAMES)
        for content in (gzip.compress(b"<html>moved</html>"), b"<html>moved</html>"):
            site[f"/{NAMES[2]}.gz"] = content
            with pytest.raises(UserError, match=NAMES[2]):
                download_missing(dataset, tmp_path / "incomplete")
            assert names_in(tmp_path / "incomplete") == sorted(f"{name}.gz" for name in NAMES[:2])
        del site[f"/{NAMES[2]}.gz"]
        with pytest.raises(UserError, match=rf"{NAMES[2]}.*data\.root"):
            download_missing(dataset, tmp_path / "away")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("body", ["huge", "trickle"])
def test_download_endless_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(http_limits, "_WINDOW_SECONDS", 0.3)

    def respond(request: Request) -> None:
        reply(request, content=b"x", Content_Length=str(10**15 if body == "huge" else 5000))
        while True:
            request.wfile.write(b"x")
            time.sleep(0.02)

    with serve(respond) as address, pytest.raises(UserError, match=rf"{address}/{NAMES[0]}\.gz.*data\.root") as caught:
        download_missing(replace(MNIST, address=address), tmp_path)
    assert ("more than" if body == "huge" else "bytes in") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_download_compressed_answer_is_not_decoded() -> None:
    """The limit on the size would not hold for decoded content."""
    content = gzip.compress(bytes(10**6))
    with serve(lambda request: reply(request, content=content, Content_Encoding="gzip")) as address:
        assert download(address, 10**5) == content


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
