"""Test a folder of tars as webdataset and other tools write them."""

import io
import json
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from jobs.data.sources.webdataset_tars import WebdatasetConfig, WebDatasetTars
from jobs.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def sample(number: int, **members: Any) -> dict[str, Any]:
    return {"__key__": f"{number:04d}", "png": encoded(PIXELS[number % 20]), **members}


def stock(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Write a tar by webdataset itself, with fractional times, which require PAX headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for content in samples:
            writer.write(content)
    return path


def plain(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def source(folder: Path, size: int = 16, channels: int = 3) -> WebDatasetTars:
    return WebDatasetTars(folder, size, channels)


def test_tars_of_webdataset_are_read(tmp_path: Path) -> None:
    labels = [{"cls": n % 3, "json": {"size": n % 2 + 9, "dark": n < 4, "kind": "ab"[n % 2]}} for n in range(9)]
    paths = [
        stock(tmp_path / "b/1.tar", [sample(n, **labels[n]) for n in (4, 5, 6, 7, 8)]),
        stock(tmp_path / "a/0.tar", [sample(n, **labels[n]) for n in (0, 1, 2)]),
        stock(tmp_path / "a/1.tar.gz", [sample(3, **labels[3])]),
    ]
    assert b"PaxHeader" in paths[0].read_bytes()
    assert paths[2].read_bytes()[:2] == b"\x1f\x8b"
    tars = pickle.loads(pickle.dumps(source(tmp_path)))
    assert tars.tars == ("a/0.tar", "a/1.tar.gz", "b/1.tar")
    assert (tars.num_samples, tars.image_shape, tars.sequential) == (9, (16, 16, 3), True)
    assert {factor.name: factor.values for factor in tars.factors} == {
        "size": ("9", "10"),
        "dark": ("false", "true"),
        "kind": ("a", "b"),
        "class": ("0", "1", "2"),
    }
    samples = list(tars.read(0, 9))
    for number, result in enumerate(samples):
        np.testing.assert_array_equal(result.image, PIXELS[number])
        assert result.factors == {"size": number % 2, "dark": int(number < 4), "kind": number % 2, "class": number % 3}
        assert list(result.factors) == [factor.name for factor in tars.factors]
        assert re.fullmatch("[0-9a-f]{24}", result.key)
    assert len({result.key for result in samples}) == 9
    assert tars.validate() == []
    for start in range(9):
        for stop in range(start, 10):
            assert [result.key for result in tars.read(start, stop)] == [result.key for result in samples[start:stop]]


def test_tars_equal_key_in_two_tars_gives_two_keys(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        stock(tmp_path / name, [sample(0)])
    first, second = source(tmp_path).read(0, 2)
    assert first.key != second.key


def test_tars_members_ignored_by_webdataset_are_ignored(tmp_path: Path) -> None:
    members = {
        "__meta__/notes.json": b"no json",
        "__index__": b"",
        "0.cls": b"1",
        "README": b"between the members of a sample",
        "0.png": encoded(PIXELS[0]),
        "0.seg.png": b"another picture of the same sample",
        ".hidden": b"",
        "0.pyd": pickle.dumps(print),
        "1.cls": b"2",
        "1.png": encoded(PIXELS[1]),
    }
    path = plain(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as tar:
        folder, link = tarfile.TarInfo("2.png"), tarfile.TarInfo("3.png")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
    assert [result.factors["class"] for result in source(tmp_path).read(0, 2)] == [0, 1]
    assert source(tmp_path).num_samples == 2


@pytest.mark.parametrize(
    ("extension", "content", "channels", "expected"),
    [
        ("webp", encoded(PIXELS[0], "WEBP"), 3, PIXELS[0]),
        ("npy", npy(PIXELS[0]), 3, PIXELS[0]),
        ("npy", npy(np.asfortranarray(PIXELS[0])), 3, PIXELS[0]),
        ("npy", npy(PIXELS[0, ..., 0]), 1, PIXELS[0, ..., :1]),
        ("npy", npy(PIXELS[0, ..., :1]), 3, PIXELS[0, ..., [0, 0, 0]].transpose(1, 2, 0)),
        ("npy", npy(np.dstack([PIXELS[0], np.zeros((16, 16), np.uint8)])), 3, np.full((16, 16, 3), 255)),
    ],
)
def test_tars_image_formats_are_read(
    tmp_path: Path, extension: str, content: bytes, channels: int, expected: np.ndarray
) -> None:
    plain(tmp_path / "0.tar", {f"0.{extension}": content})
    np.testing.assert_array_equal(next(source(tmp_path, channels=channels).read(0, 1)).image, expected)


def test_tars_images_are_cropped_and_resized(tmp_path: Path) -> None:
    wide = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 40, 0)  # 40 x 60
    plain(tmp_path / "0.tar", {"0.jpeg": encoded(wide, "JPEG")})
    image = next(source(tmp_path, 20, 1).read(0, 1)).image
    assert image.shape == (20, 20, 1)
    np.testing.assert_allclose(image[10, 2:-2, 0], 4 * (10 + np.arange(4, 36, 2) + 0.5), atol=6)


def test_tars_dots_in_names_belong_to_the_key(tmp_path: Path) -> None:
    """A tar whose names have no image at their first dot is divided at the last; another tar is not."""
    members = {
        f"photo.2020.{n:02d}.{e}": c for n in range(3) for e, c in (("cls", b"%d" % n), ("png", encoded(PIXELS[n])))
    }
    plain(tmp_path / "0.tar", members)
    plain(tmp_path / "1.tar", {"3.png": encoded(PIXELS[3]), "3.seg.png": b"", "3.cls": b"3"})
    samples = list(source(tmp_path).read(0, 4))
    assert [sample.factors["class"] for sample in samples] == [0, 1, 2, 3]
    for number, result in enumerate(samples):
        np.testing.assert_array_equal(result.image, PIXELS[number])


@pytest.mark.parametrize(("key", "number"), [("png", 0), ("seg.png", 1), ("JPG", 2)])
def test_tars_image_key_selects_the_image(tmp_path: Path, key: str, number: int) -> None:
    images = {"0.png": encoded(PIXELS[0]), "0.seg.png": encoded(PIXELS[1]), "0.jpg": encoded(PIXELS[2], "PNG")}
    plain(tmp_path / "0.tar", images)
    [result] = WebdatasetConfig(root=tmp_path, image_size=16, image_key=key).open().read(0, 1)
    np.testing.assert_array_equal(result.image, PIXELS[number])


def test_tars_members_left_out_are_counted(tmp_path: Path) -> None:
    names = [
        "._0.png",
        "__MACOSX/._0.png",
        "a/.git/x.png",
        "0.cls",
        "README",
        "notes.md",
        "notes.\udcff",
        "0.png",
        "0.seg.png",
        ".DS_Store",
    ]
    path = plain(tmp_path / "0.tar", dict.fromkeys(names, b"1"))
    with tarfile.open(path, "a") as tar:
        link, pipe = tarfile.TarInfo("1.png"), tarfile.TarInfo("pipe.png")
        link.type, link.linkname, pipe.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE
        tar.addfile(link)
        tar.addfile(pipe)
    (tmp_path / "notes.txt").touch()
    tars = source(tmp_path)
    assert tars.num_samples == 1
    assert tars.left_out == {
        "hidden or system files": 4,
        "files without ending": 1,
        "other file types .md": 1,
        "other file types .\\xff": 1,
        "other file types .seg.png": 1,
        "links without a target in the tar": 1,
        "special files": 1,
        "other file types: .txt": 1,
    }


def test_tars_left_out_of_a_folder_with_a_dot(tmp_path: Path) -> None:
    """The folder is no part of the type."""
    plain(tmp_path / "0.tar", {"v1.0/0001.png": encoded(PIXELS[0]), "v1.0/0001.seg.png": b"1"})
    assert source(tmp_path).left_out == {"other file types .seg.png": 1}


def test_tars_in_excluded_folders_are_not_read(tmp_path: Path) -> None:
    stock(tmp_path / "a/0.tar", [sample(0)])
    stock(tmp_path / "workspace/shards/0.tar", [sample(1)])
    tars = source(tmp_path).excluding([tmp_path / "workspace"])
    assert tars.tars == ("a/0.tar",)
    assert tars.left_out == {"folders that commands write: workspace": 1}


def test_tars_unsuitable_labels_give_warnings(tmp_path: Path) -> None:
    tables = [
        {"ok": n % 2, "text": f"caption {n}", "score": n / 2, "none": None, "list": [n], "größe": 1, "rung_1": 1}
        | {"long": "x" * 101, "n" * 101: 1, "OK": 1}
        for n in range(1002)
    ]
    tables[500]["late"] = 1
    del tables[700]["ok"]
    members = {}
    for n, table in enumerate(tables):
        members |= {f"{n}.json": json.dumps(table | {"good": -n % 3}).encode(), f"{n}.png": b""}
    plain(tmp_path / "0.tar", members)
    tars = source(tmp_path)
    assert [(factor.name, factor.values) for factor in tars.factors] == [("good", ("0", "1", "2"))]
    warnings = {re.search("'(.*?)'", warning)[1]: warning for warning in tars.validate()}
    assert set(warnings) == {"ok", "text", "score", "none", "list", "größe", "long", "late"} | {
        "rung_1",
        "n" * 50,
        "OK",
    }
    assert "more than 1000 values" in warnings["text"]
    assert "not every sample" in warnings["ok"]
    assert "not every sample" in warnings["late"]
    assert "integers" in warnings["score"]
    assert "letters" in warnings["größe"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.cls": b"1", "1.png": b"", "0.png": b""}, "--sort=name"),
        ({"0.png": b"", "1.png": b"", "0.jpg": b""}, "--sort=name"),
        ({"0.cls": b"1", "1.png": b""}, "'0'"),
        ({"0.cls": b"1"}, "'0'"),
        ({"0.jpg": b"", "0.png": b""}, r"'0' .*data\.image_key=jpg"),
        ({"0.left.png": b"", "0.right.png": b"", "0.cls": b"1"}, r"'0' .*data\.image_key=left\.png"),
        ({"0.png": b"", "0.PNG": b""}, r"0\.png"),
        ({"README": b""}, "data.root="),
        ({}, "data.root="),
    ],
)
def test_tars_invalid_sample_error_names_it(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    plain(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=message):
        source(tmp_path).validate()


@pytest.mark.parametrize(
    "labels",
    [{"cls": b"cat"}, {"json": b"{"}, {"json": b"[" * 10**6}, {"json": b"\xff"}, {"json": b"[1]" + b" " * 2**20}],
)
def test_tars_invalid_labels_skip_the_sample(tmp_path: Path, labels: dict[str, bytes]) -> None:
    image = {"0.png": encoded(PIXELS[0]), "1.png": encoded(PIXELS[1])}
    plain(tmp_path / "0.tar", image | {f"1.{extension}": content for extension, content in labels.items()})
    first, skipped = source(tmp_path).read(0, 2)
    np.testing.assert_array_equal(first.image, PIXELS[0])
    assert skipped.name == "0.tar: 1"
    assert "0.tar: .json or .cls of 1: cannot read" in skipped.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.png", encoded(PIXELS[0])[:200]),
        ("0.jpg", b"<html>"),
        ("0.png", encoded(PIXELS[0], "PPM")),
        ("0.npy", npy(PIXELS[:0, 0])),
        ("0.npy", npy(PIXELS[0]).replace(b"(16, 16, 3)", b"(16, -1, 3)")),
        ("0.npy", npy(np.zeros((1, 2**16), np.uint8))),
        ("0.npy", npy(PIXELS[0].astype(float))),
        ("0.npy", npy(PIXELS[0, ..., :2])),
        ("0.npy", npy(PIXELS[0])[:-1]),
        ("0.npy", npy(PIXELS[0, 0, 0])),
        ("0.npy", npy(np.array([print]))),
        ("0.npy", b""),
    ],
)
def test_tars_invalid_image_is_skipped_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    plain(tmp_path / "0.tar", {name: content})
    [skipped] = source(tmp_path).read(0, 1)
    assert skipped.name == "0.tar: 0"
    assert f"0.tar: {name}: " in skipped.reason


def test_tars_changed_tar_error_names_it(tmp_path: Path) -> None:
    stock(tmp_path / "0.tar", [sample(n, cls=n) for n in range(3)])
    begun = source(tmp_path)
    assert begun.num_samples == 3
    for other in ([sample(0, cls=0)], [sample(0, cls=7)], [sample(0)]):
        stock(tmp_path / "0.tar", other)
        with pytest.raises(UserError, match=r"0\.tar: "):
            list(begun.read(0, 3))


def test_tars_folder_without_tars_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.root={tmp_path}"):
        source(tmp_path).validate()
    with pytest.raises(UserError, match=r"data\.root=.*nowhere"):
        source(tmp_path / "nowhere").validate()


def test_tars_fingerprint_changes_with_files_and_settings(tmp_path: Path) -> None:
    stock(tmp_path / "0.tar", [sample(0)])
    prints = {source(tmp_path).fingerprint, source(tmp_path, 8).fingerprint, source(tmp_path, 8, 1).fingerprint}
    assert source(tmp_path).fingerprint in prints
    stock(tmp_path / "0.tar", [sample(1)])
    prints.add(source(tmp_path).fingerprint)
    (tmp_path / "a").mkdir()
    (tmp_path / "0.tar").rename(tmp_path / "a/0.tar")
    prints.add(source(tmp_path).fingerprint)
    assert len(prints) == 5
    assert all(name.startswith("webdataset-") for name in prints)
