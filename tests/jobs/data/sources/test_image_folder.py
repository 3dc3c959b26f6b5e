"""Test the image folder: images cropped and resized, factors from a table, errors that name the cause."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.sources.image_folder import ImageFolder
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,size\na/one.png,1\n", "name,size"),
        ("file,size (cm)\na/one.png,1\n", r"'size \(cm\)'"),
        ("file,size,\na/one.png,1,2\n", "''"),
        ("file,gr\u00f6\u00dfe\na/one.png,1\n".encode("latin-1"), ""),
        ("file,size\na/one.png,1\n", r"a/two\.jpg"),
        ("file,size\na/one.png,1\na/two.jpg,\nb/three.PNG,2\n", r"size .*a/two\.jpg"),
    ],
)
def test_image_folder_invalid_table_error_names_entry(images: Path, table: str | bytes, message: str) -> None:
    (images / "factors.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    with pytest.raises(UserError, match=rf"factors\.csv: .*{message}"):
        ImageFolder(images, 16, 3).factors  # noqa: B018


def test_image_folder_damaged_image_error_names_it(images: Path) -> None:
    (images / "a/two.jpg").write_bytes((images / "a/two.jpg").read_bytes()[:300])
    with pytest.raises(UserError, match=r"two\.jpg"):
        list(ImageFolder(images, 16, 3).read(0, 3))


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
