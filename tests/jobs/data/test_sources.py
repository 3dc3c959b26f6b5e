"""Sources read files in the true formats, and say which file is wrong."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.config import DEBIAN_FASHION_MNIST, FashionMnistConfig
from jobs.data.sources import fashion_mnist
from jobs.data.sources.build import open_source
from jobs.data.sources.fashion_mnist import FILES, FashionMnist, read_idx, read_verified
from jobs.data.sources.image_folder import ImageFolder
from jobs.errors import UserError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> tuple[FashionMnist, dict[str, np.ndarray]]:
    """Full-size files of the format with other content, half of them compressed."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 2, (count, 28, 28), dtype=np.uint8) * 255
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    hashes = []
    for name, array in arrays.items():
        content = idx(array)
        hashes.append((name, hashlib.sha256(content).hexdigest()))
        if name.startswith("train"):
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return FashionMnist(folder, 28, tuple(hashes)), arrays


def test_idx_across_the_two_files(fashion: tuple[FashionMnist, dict[str, np.ndarray]]) -> None:
    source, arrays = fashion
    samples = list(source.read(59_998, 60_003))
    assert [sample.split for sample in samples] == ["train", "train", "test", "test", "test"]
    assert len({sample.key for sample in samples}) == 5
    np.testing.assert_array_equal(samples[1].image[..., 0], arrays["train-images-idx3-ubyte"][59_999])
    np.testing.assert_array_equal(samples[4].image[..., 0], arrays["t10k-images-idx3-ubyte"][2])
    assert samples[4].factors == {"class": arrays["t10k-labels-idx1-ubyte"][2]}


def test_border(fashion: tuple[FashionMnist, dict[str, np.ndarray]]) -> None:
    source = FashionMnist(fashion[0].folder, 32, fashion[0].files)
    image = next(source.read(60_000, 60_001)).image
    assert image.shape == source.image_shape == (32, 32, 1)
    assert image[:2].max() == image[-2:].max() == image[:, :2].max() == 0
    np.testing.assert_array_equal(image[2:-2, 2:-2, 0], fashion[1]["t10k-images-idx3-ubyte"][0])


def test_other_content_is_refused(fashion: tuple[FashionMnist, dict[str, np.ndarray]], tmp_path: Path) -> None:
    name, digest = fashion[0].files[3]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="not the published file"):
        read_verified(path, digest)
    path.write_bytes((fashion[0].folder / f"{name}.gz").read_bytes()[:500])
    with pytest.raises(UserError, match="is damaged"):
        read_verified(path, digest)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"\x1f\x8b\x08\x00abcdef", idx(np.zeros((3, 2)))[:-1]])
def test_wrong_structure_is_an_error(content: bytes) -> None:
    with pytest.raises(UserError, match="IDX"):
        read_idx(content, 0, 1)


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


def test_missing_files_are_listed(tmp_path: Path) -> None:
    for name in list(FILES)[1:]:
        (tmp_path / name).touch()
    for download in (True, False):  # who names a folder wants what is in it
        config = FashionMnistConfig(folder=tmp_path, download=download)
        with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte \(plain or .gz\): put them there"):
            open_source(config, tmp_path / "downloads", fetch=True)


def test_download_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file:// address stands for the publisher's."""
    site = tmp_path / "site"
    site.mkdir()
    files = {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    for name in files:
        (site / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL", site.as_uri())
    fashion_mnist.download(tmp_path / "good")
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == sorted(f"{name}.gz" for name in files)
    (site / f"{list(files)[2]}.gz").write_bytes(gzip.compress(b"<html>moved</html>"))
    with pytest.raises(UserError, match=f"{list(files)[2]}.*something else"):
        fashion_mnist.download(tmp_path / "bad")
    assert sorted(path.name for path in (tmp_path / "bad").iterdir()) == sorted(
        f"{name}.gz" for name in list(files)[:2]
    )
    (site / f"{list(files)[2]}.gz").unlink()
    with pytest.raises(UserError, match=r"cannot be reached.*data\.folder"):
        fashion_mnist.download(tmp_path / "away")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/one.png", "a/two.jpg", "b/three.PNG"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_cropped_and_resized(pictures: Path) -> None:
    source = ImageFolder(pictures, 32, 3)
    samples = list(source.read(0, 3))
    assert source.num_samples == 3
    assert source.files == ("a/one.png", "a/two.jpg", "b/three.PNG")
    assert source.factors == ()
    assert len({sample.key for sample in samples}) == 3
    with Image.open(pictures / "a/one.png") as image:
        expected = image.crop((10, 0, 50, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    # The filter reaches a few pixels over the edge of the crop.
    np.testing.assert_array_equal(samples[0].image[:, 3:-3], np.asarray(expected)[:, 3:-3])
    assert next(ImageFolder(pictures, 28, 1).read(0, 1)).image.shape == (28, 28, 1)


def test_factors_come_from_the_table(pictures: Path) -> None:
    (pictures / "factors.csv").write_text("file,size,kind\na/one.png,10,cat\nb/three.PNG,9,dog\na/two.jpg,10,ant\n")
    source = ImageFolder(pictures, 16, 3)
    assert [(factor.name, factor.values) for factor in source.factors] == [
        ("size", ("9", "10")),
        ("kind", ("ant", "cat", "dog")),
    ]
    assert [sample.factors for sample in source.read(0, 3)] == [
        {"size": 1, "kind": 1},
        {"size": 1, "kind": 0},
        {"size": 0, "kind": 2},
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,size\na/one.png,1\n", "must begin with a line file"),
        ("file,size (cm)\na/one.png,1\n", r"a column 'size \(cm\)'"),
        ("file,size,\na/one.png,1,2\n", "a column ''"),
        ("file,gr\u00f6\u00dfe\na/one.png,1\n".encode("latin-1"), "not a table in UTF-8"),
        ("file,size\na/one.png,1\n", r"no row for a/two\.jpg"),
        ("file,size\na/one.png,1\na/two.jpg,\nb/three.PNG,2\n", r"no size for a/two\.jpg"),
    ],
)
def test_a_wrong_table_is_named(pictures: Path, table: str | bytes, message: str) -> None:
    (pictures / "factors.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    with pytest.raises(UserError, match=message):
        ImageFolder(pictures, 16, 3).factors  # noqa: B018


def test_a_wrong_picture_is_named(pictures: Path) -> None:
    (pictures / "a/two.jpg").write_bytes((pictures / "a/two.jpg").read_bytes()[:300])
    with pytest.raises(UserError, match=r"two\.jpg cannot be read as a picture"):
        list(ImageFolder(pictures, 16, 3).read(0, 3))


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[16:, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "b.png")
    deep, layered = (sample.image for sample in ImageFolder(tmp_path, 32, 1).read(0, 2))
    np.testing.assert_allclose(deep[..., 0], ramp / 257, atol=1)
    assert layered[:12].min() == 255  # white shows through
    assert layered[20:].max() == 0


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no picture"):
        ImageFolder(tmp_path, 16, 3).files  # noqa: B018
    with pytest.raises(UserError, match="not a folder"):
        ImageFolder(tmp_path / "nowhere", 16, 3).files  # noqa: B018


def test_fingerprint_follows_the_files(pictures: Path) -> None:
    before = ImageFolder(pictures, 16, 3).fingerprint
    assert ImageFolder(pictures, 16, 3).fingerprint == before
    (pictures / "c.png").write_bytes((pictures / "a/one.png").read_bytes())
    assert ImageFolder(pictures, 16, 3).fingerprint != before
