"""Test CelebA with a zip of JPEGs and two lists like the published ones."""

import hashlib
import io
import pickle
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.sources import celeba
from jobs.data.sources.celeba import CelebA
from jobs.errors import UserError

NAMES = [f"{number:06d}.jpg" for number in range(1, 8)]
ATTRIBUTES = ["5_o_Clock_Shadow", "Bald", "Young"]
VALUES = np.random.default_rng(0).choice([-1, 1], (len(NAMES), len(ATTRIBUTES)))
SPLITS = [0, 0, 2, 1, 0, 2, 1]


def jpeg(number: int, size: tuple[int, int] = (178, 218)) -> bytes:
    """Return an image whose colors tell where a crop was taken."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([x, y, np.full_like(x, 20 * number)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_align_celeba/", b"")
        for name, content in members.items():
            archive.writestr(f"img_align_celeba/{name}", content)


def attribute_lines() -> list[str]:
    rows = [
        name + "".join(f" {value:2d}" for value in values) + " " for name, values in zip(NAMES, VALUES, strict=True)
    ]
    return [str(len(NAMES)), " ".join(ATTRIBUTES) + " ", *rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # In another order than the lists have.
    write_zip(tmp_path / "img_align_celeba.zip", {name: jpeg(int(name[:6])) for name in reversed(NAMES)})
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(attribute_lines()) + "\n")
    rows = [f"{name} {split}" for name, split in zip(NAMES, SPLITS, strict=True)]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_celeba_any_ranges_join_to_all_samples(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(CelebA(folder, 148, 64)))
    assert source.num_samples == 7
    assert not source.sequential
    assert [(factor.name, factor.values) for factor in source.factors] == [(name, ("no", "yes")) for name in ATTRIBUTES]
    for cuts in ([0, 7], [0, 1, 3, 6, 7]):
        samples = [sample for begin, end in pairwise(cuts) for sample in source.read(begin, end)]
        assert [sample.key for sample in samples] == [name[:6] for name in NAMES]
        assert [sample.split for sample in samples] == [("train", "validation", "test")[split] for split in SPLITS]
        assert [list(sample.factors) for sample in samples] == [ATTRIBUTES] * 7
        np.testing.assert_array_equal([list(sample.factors.values()) for sample in samples], (VALUES + 1) // 2)
        for number, sample in enumerate(samples, start=1):
            assert sample.image.dtype == np.uint8
            assert abs(float(sample.image[..., 2].mean()) - 20 * number) < 3


@pytest.mark.parametrize(("crop", "size"), [(148, 64), (108, 64), (148, 148)])
def test_celeba_crop_is_central(folder: Path, crop: int, size: int) -> None:
    source = CelebA(folder, crop, size)
    image = next(source.read(2, 3)).image
    assert image.shape == source.image_shape == (size, size, 3)
    with Image.open(io.BytesIO(jpeg(3))) as whole:
        left, top = {148: (15, 35), 108: (35, 55)}[crop]
        expected = whole.crop((left, top, left + crop, top + crop)).resize((size, size), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(image, np.asarray(expected))
    assert abs(int(image[0, 0, 0]) - left) < 5  # red is x, green is y
    assert abs(int(image[-1, -1, 1]) - (top + crop)) < 5


def test_celeba_missing_file_error_names_file_and_root(folder: Path) -> None:
    (folder / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"data\.root=.*list_eval_partition\.txt.*data=celeba"):
        CelebA(folder, 148, 64).num_samples  # noqa: B018


def test_celeba_other_size_or_hash_gives_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(CelebA(folder, 148, 64).validate()) == 3
    contents = [(folder / file.name).read_bytes() for file in celeba.FILES]
    files = [
        replace(file, num_bytes=len(content), md5=hashlib.md5(content).hexdigest())
        for file, content in zip(celeba.FILES, contents, strict=True)
    ]
    monkeypatch.setattr(celeba, "FILES", tuple(files))
    assert CelebA(folder, 148, 64).validate() == []


def test_celeba_fingerprint_changes_with_files_and_settings(folder: Path) -> None:
    before = {CelebA(folder, crop, size).fingerprint for crop in (108, 148) for size in (32, 64)}
    assert len(before) == 4
    assert CelebA(folder, 148, 64).fingerprint in before
    with (folder / "list_eval_partition.txt").open("a") as file:
        file.write("\n")
    assert CelebA(folder, 148, 64).fingerprint not in before


def test_celeba_files_with_different_images_raise(folder: Path) -> None:
    partition = folder / "list_eval_partition.txt"
    lines = partition.read_text().splitlines()
    for changed in (lines[:-1], [*lines, "000009.jpg 0"], ["000009.jpg 0", *lines[1:]]):
        partition.write_text("\n".join(changed))
        with pytest.raises(UserError, match=r"list_eval_partition\.txt.*list_attr"):
            CelebA(folder, 148, 64).validate()
    partition.write_text("\n".join(lines))
    archive = folder / "img_align_celeba.zip"
    members = {name: jpeg(1) for name in NAMES}
    for changed in ({"more.jpg": b""} | members, dict.fromkeys(NAMES[1:], b""), members | {f"x/{NAMES[0]}": b""}):
        write_zip(archive, changed)
        with pytest.raises(UserError, match=r"img_align_celeba\.zip.*list_attr"):
            CelebA(folder, 148, 64).validate()
    write_zip(archive, {name: jpeg(1) for name in NAMES[1:]})
    with pytest.raises(UserError, match=r"img_align_celeba\.zip.*000001\.jpg"):
        next(CelebA(folder, 148, 64).read(0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], ""),
        (lambda lines: lines[:1], ""),
        (lambda lines: [], ""),
        (lambda lines: ["many", *lines[1:]], ""),
        (lambda lines: [lines[0], "Bald Bald Young", *lines[2:]], ""),
        (lambda lines: [lines[0], "Bald a/b Young", *lines[2:]], ""),
        (lambda lines: [*lines[:-1], "000007.jpg  1 -1"], "line 9"),
        (lambda lines: [*lines[:-1], "000007.jpg  1 -1 0"], "line 9"),
        (lambda lines: [*lines[:2], "", *lines[3:]], "line 3"),
        (lambda lines: [*lines[:-1], "\xff"], ""),
    ],
)
def test_celeba_invalid_attributes_error_names_file(folder: Path, change, message: str) -> None:
    (folder / "list_attr_celeba.txt").write_bytes("\n".join(change(attribute_lines())).encode("latin-1"))
    with pytest.raises(UserError, match=rf"list_attr_celeba\.txt: .*{message}") as caught:
        CelebA(folder, 148, 64).validate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["000007.jpg 3", "000007.jpg", "", "000006.jpg 1"])
def test_celeba_invalid_partition_error_names_line(folder: Path, line: str) -> None:
    path = folder / "list_eval_partition.txt"
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], line, ""]))
    with pytest.raises(UserError, match=r"list_eval_partition\.txt: line 7"):
        CelebA(folder, 148, 64).validate()


def test_celeba_damaged_zip_or_image_error_names_it(folder: Path) -> None:
    path = folder / "img_align_celeba.zip"
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match=r"img_align_celeba\.zip"):
        CelebA(folder, 148, 64).validate()
    start = intact.index(jpeg(4))
    path.write_bytes(intact[: start + 900] + bytes([intact[start + 900] ^ 1]) + intact[start + 901 :])
    source = CelebA(folder, 148, 64)
    assert len(list(source.read(0, 3))) == 3
    with pytest.raises(UserError, match=r"000004\.jpg in .*img_align_celeba\.zip"):
        list(source.read(3, 4))
    for content in (jpeg(4)[:2000], jpeg(4, (218, 178)), b"GIF89a"):
        write_zip(path, dict.fromkeys(NAMES, content))
        with pytest.raises(UserError, match=r"000004\.jpg in .*img_align_celeba\.zip") as caught:
            list(source.read(3, 4))
        assert "\n" not in str(caught.value)
