"""Pictures of one's own: found, cropped, resized, with factors from a table; what is wrong is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.sources.image_folder import ImageFolder
from jobs.errors import UserError


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
