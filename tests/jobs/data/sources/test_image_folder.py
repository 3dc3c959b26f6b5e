"""Test the image folder: images cropped and resized, factors from a table, errors that name the cause."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.sources.base import Sample
from jobs.data.sources.image_folder import ImageFolder, ImagesConfig
from jobs.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/one.png", "a/two.jpg", "b/three.PNG"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_image_folder_images_are_cropped_and_resized(images: Path) -> None:
    source = ImageFolder(images, 32, 3)
    samples = list(source.read(0, 3))
    assert source.num_samples == 3
    assert source.files == ("a/one.png", "a/two.jpg", "b/three.PNG")
    assert source.factors == ()
    assert len({sample.key for sample in samples}) == 3
    with Image.open(images / "a/one.png") as image:
        expected = image.crop((10, 0, 50, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    # The filter reaches a few pixels over the edge of the crop.
    np.testing.assert_array_equal(samples[0].image[:, 3:-3], np.asarray(expected)[:, 3:-3])
    assert next(ImageFolder(images, 28, 1).read(0, 1)).image.shape == (28, 28, 1)


def test_image_folder_factors_equal_table(images: Path) -> None:
    (images / "factors.csv").write_text("file,size,kind\na/one.png,10,cat\nb/three.PNG,9,dog\na/two.jpg,10,ant\n")
    source = ImageFolder(images, 16, 3)
    assert [(factor.name, factor.values) for factor in source.factors] == [
        ("size", ("9", "10")),
        ("kind", ("ant", "cat", "dog")),
    ]
    assert [sample.factors for sample in source.read(0, 3)] == [
        {"size": 1, "kind": 1},
        {"size": 1, "kind": 0},
        {"size": 0, "kind": 2},
    ]


def test_image_folder_damaged_image_is_skipped(images: Path) -> None:
    (images / "a/two.jpg").write_bytes((images / "a/two.jpg").read_bytes()[:300])
    first, skipped, last = ImageFolder(images, 16, 3).read(0, 3)
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert skipped.name == "a/two.jpg"
    assert str(images / "a/two.jpg") in skipped.reason


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif", "TIFF", "gif"])
def test_image_folder_reads_every_format(tmp_path: Path, ending: str) -> None:
    """The first frame is read, where a format has several."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255, 0, 0
    options = {"lossless": True} if ending == "webp" else {}
    if ending in ("webp", "TIFF", "gif"):
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", **options)
    (sample,) = ImageFolder(tmp_path, 16, 3).read(0, 1)
    np.testing.assert_array_equal(sample.image, pixels)


def test_image_folder_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"a\x1b[31m.png"):
        Image.new("L", (16, 16)).save(os.fsdecode(os.fsencode(tmp_path) + b"/" + name), "PNG")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe9.png")).write_bytes(b"no image")
    source = ImageFolder(tmp_path, 16, 1)
    good, skipped, other = source.read(0, 3)
    assert good.key == hashlib.sha256(b"a\x1b[31m.png").hexdigest()[:24]
    assert other.key == hashlib.sha256(b"caf\xe9.png").hexdigest()[:24]
    assert skipped.name == r"b\xe9.png"
    assert r"b\xe9.png" in skipped.reason
    assert len(source.fingerprint) == 64


def test_image_folder_16_bit_and_transparent_are_converted(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[16:, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "b.png")
    deep, layered = (sample.image for sample in ImageFolder(tmp_path, 32, 1).read(0, 2))
    np.testing.assert_allclose(deep[..., 0], ramp / 257, atol=1)
    assert layered[:12].min() == 255  # white shows through
    assert layered[20:].max() == 0


def test_image_folder_12_bit_is_scaled_by_the_setting(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    [sample] = ImagesConfig(root=tmp_path, image_size=16, channels=1, bit_depth=12).open().read(0, 1)
    np.testing.assert_allclose(sample.image[..., 0], ramp / 4095 * 255, atol=1)
    with pytest.raises(UserError, match=r"a\.png: .*data\.bit_depth"):
        list(ImageFolder(tmp_path, 16, 1).read(0, 1))


def test_image_folder_without_images_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}"):
        ImageFolder(tmp_path, 16, 3).files  # noqa: B018
    with pytest.raises(UserError, match=r"data\.root=.*nowhere"):
        ImageFolder(tmp_path / "nowhere", 16, 3).files  # noqa: B018


def test_image_folder_fingerprint_changes_with_files(images: Path) -> None:
    before = ImageFolder(images, 16, 3).fingerprint
    assert ImageFolder(images, 16, 3).fingerprint == before
    (images / "c.png").write_bytes((images / "a/one.png").read_bytes())
    assert ImageFolder(images, 16, 3).fingerprint != before


def test_image_folder_fingerprint_follows_size_and_time_alone(images: Path) -> None:
    """The shards of a folder stay those of the folder, whatever is left out of it."""
    digest = hashlib.sha256(f"ImageFolder(folder={images!r}, image_size=16, channels=3, bit_depth=0)".encode())
    for name in ("a/one.png", "a/two.jpg", "b/three.PNG"):
        status = (images / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    (images / "ws").mkdir()
    (images / "ws" / "figure.png").touch()
    source = ImageFolder(images, 16, 3).excluding([images / "ws"])
    assert source.fingerprint == digest.hexdigest()
    assert sum(source.left_out.values()) == 2


def test_image_folder_fingerprint_changes_with_a_file(images: Path) -> None:
    """Another picture may have as many bytes as the one that it replaces."""
    before = ImageFolder(images, 32, 3).fingerprint
    assert ImageFolder(images, 32, 3).fingerprint == before
    path = images / "a" / "one.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert ImageFolder(images, 32, 3).fingerprint != before
