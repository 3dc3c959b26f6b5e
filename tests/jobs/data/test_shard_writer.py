"""Test shards and manifests, read back by stock webdataset and by tarfile."""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from helpers.datasets import copy, stock_samples, write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.data.manifest import finished_tasks, read_manifest
from jobs.data.shard_writer import assign_split, member_header, write_tasks
from jobs.data.sources.base import Sample, Skipped
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UserError
from jobs.shard import plan_tasks, publish
from jobs.storage.local import LocalStorage


def test_shards_stock_webdataset_reads_every_sample(digit_scenes: DigitScenes, digit_dataset: Path) -> None:
    read = {sample["__key__"]: sample for sample in stock_samples(digit_dataset, "*.tar")}
    written = list(digit_scenes.read(0, 300))
    assert set(read) == {sample.key for sample in written}
    for sample in written:
        np.testing.assert_array_equal(read[sample.key]["npy"], sample.image)
        assert read[sample.key]["json"] == sample.factors


def test_shard_index_offsets_equal_tarfile(digit_dataset: Path) -> None:
    for path in digit_dataset.glob("*.tar"):
        index = np.load(path.with_suffix(".index.npy"), allow_pickle=False)
        with tarfile.open(path) as tar:
            tables = [member for member in tar.getmembers() if member.name.endswith(".json")]
            images = [member for member in tar.getmembers() if member.name.endswith(".npy")]
            factors = [json.load(tar.extractfile(member)) for member in tables]
        assert (index[:, 1] == 16 * 16 * 3).all()
        np.testing.assert_array_equal(index[:, 0], [m.offset_data + m.size - 16 * 16 * 3 for m in images])
        np.testing.assert_array_equal(index[:, 2:], [list(values.values()) for values in factors])


def test_manifest_sizes_and_hashes_equal_files(digit_scenes: DigitScenes, digit_dataset: Path) -> None:
    manifest = read_manifest(LocalStorage(digit_dataset))
    assert manifest is not None
    assert manifest.factors == digit_scenes.factors
    assert manifest.image_shape == (16, 16, 3)
    assert sum(shard.num_samples for shard in manifest.shards) == 300
    for shard in manifest.shards:
        content = (digit_dataset / f"{shard.name}.tar").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.num_bytes, shard.sha256)


def test_shards_equal_samples_give_equal_bytes(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, digit_dataset: Path, tmp_path: Path
) -> None:
    write_dataset(digit_scenes, tmp_path / "again", digits_config)
    assert contents(tmp_path / "again") == contents(digit_dataset)
    other = write_dataset(DigitScenes(300, 16, 3, 1), tmp_path / "other", digits_config)
    manifest = read_manifest(LocalStorage(digit_dataset))
    assert manifest is not None
    assert other.fingerprint != manifest.fingerprint


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_shard_equals_webdataset_writer(digit_scenes: DigitScenes, digit_dataset: Path, tmp_path: Path) -> None:
    """The tar is equal byte for byte to webdataset's with its time and owner fixed."""
    with tarfile.open(digit_dataset / "train-00000.tar") as tar:
        keys = {name.partition(".")[0] for name in tar.getnames()}
    with wds.TarWriter(str(tmp_path / "stock.tar"), mtime=0) as writer:
        for sample in digit_scenes.read(0, 120):
            if sample.key in keys:
                factors = json.dumps(sample.factors, separators=(",", ":")).encode()
                writer.write({"__key__": sample.key, "json": factors, "npy": sample.image})
    assert (tmp_path / "stock.tar").read_bytes() == (digit_dataset / "train-00000.tar").read_bytes()


@pytest.mark.parametrize(("name", "size"), [(b"", 1), (b"x" * 101, 1), ("\u00e9".encode(), 1), (b"x", 8**11)])
def test_member_header_out_of_range_raises(name: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="ustar header"):
        member_header(name, size)


@given(name=st.text("abc/.-_0129", min_size=1, max_size=100), size=st.integers(0, 8**11 - 1))
def test_member_header_equals_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    assert member_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_shards_png_images_equal_source(digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path: Path) -> None:
    manifest = write_dataset(digit_scenes, tmp_path / "png", digits_config.model_copy(update={"encoding": "png"}))
    assert manifest.encoding == "png"
    read = {sample["__key__"]: sample for sample in stock_samples(tmp_path / "png", "*.tar", "rgb8")}
    for sample in digit_scenes.read(0, 300):
        np.testing.assert_array_equal(read[sample.key]["png"], sample.image)
        assert read[sample.key]["json"] == sample.factors
    gray = DigitScenes(300, 16, 1, 0)
    write_dataset(gray, tmp_path / "gray", digits_config.model_copy(update={"encoding": "png"}))
    read = {sample["__key__"]: sample for sample in stock_samples(tmp_path / "gray", "*.tar", "l8")}
    for sample in gray.read(0, 300):
        np.testing.assert_array_equal(read[sample.key]["png"], sample.image[..., 0])


def test_assign_split_fractions_and_published_split() -> None:
    """A published test split stays complete, and no published training sample joins it."""
    samples = [Sample(f"{number}", np.zeros((1, 1, 1), np.uint8), {}) for number in range(20_000)]
    counts = Counter(assign_split(sample, 0.05, 0.1) for sample in samples)
    assert counts["validation"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert counts["test"] / 20_000 == pytest.approx(0.1, abs=0.008)
    for split, expected in (("test", {"test"}), ("train", {"train", "validation"}), ("validation", {"validation"})):
        published = [Sample(sample.key, sample.image, {}, split) for sample in samples[:500]]
        assert {assign_split(sample, 0.2, 0.2) for sample in published} == expected


class Failing(DigitScenes):
    def read(self, start: int, stop: int) -> Iterator[Sample]:
        yield from super().read(start, stop - 1)
        raise UserError("picture 17: damaged")


class Damaged(DigitScenes):
    """Every sixth image cannot be decoded."""

    def read(self, start: int, stop: int) -> Iterator[Sample | Skipped]:
        for number, sample in enumerate(super().read(start, stop), start):
            yield Skipped(f"{number}.png", f"/data/{number}.png: invalid image") if number % 6 == 0 else sample


def test_write_tasks_undecodable_images_are_all_named(digits_config: DigitsConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.on_error.* 50 images: 0\.png, .*, 54\.png and 40 more") as error:
        write_dataset(Damaged(300, 16, 3, 0), tmp_path, digits_config)
    assert "60.png" not in str(error.value)
    assert read_manifest(LocalStorage(tmp_path)) is None
    # The next command decodes them again, because they may have failed for another reason than their content.
    assert finished_tasks(LocalStorage(tmp_path)) == set()


def test_write_tasks_on_error_skip_lists_images(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path: Path
) -> None:
    """The shards equal those of a source that never had the images."""
    config = digits_config.model_copy(update={"on_error": "skip"})
    manifest = write_dataset(Damaged(300, 16, 3, 0), tmp_path / "skip", config)
    assert manifest == read_manifest(LocalStorage(tmp_path / "skip"))
    assert manifest.num_skipped == 50
    assert [sample.name for sample in manifest.skipped] == [f"{number}.png" for number in range(0, 300, 6)]
    read = {sample["__key__"]: sample["npy"] for sample in stock_samples(tmp_path / "skip", "*.tar")}
    written = {sample.key: sample.image for number, sample in enumerate(digit_scenes.read(0, 300)) if number % 6}
    assert read.keys() == written.keys()
    assert all((read[key] == image).all() for key, image in written.items())


def test_manifest_bounds_the_list_of_skipped_images(tmp_path: Path) -> None:
    config = DigitsConfig(samples_per_task=400, on_error="skip")
    manifest = write_dataset(Damaged(720, 8, 3, 0), tmp_path, config)
    assert (manifest.num_skipped, len(manifest.skipped)) == (120, 100)
    assert manifest.skipped_names.startswith("120 images: 0.png, 6.png")
    assert manifest.skipped_names.endswith("54.png and 110 more")


def test_manifest_of_earlier_versions_is_read(digit_dataset: Path, tmp_path: Path) -> None:
    content = json.loads((digit_dataset / "manifest.json").read_text())
    for name in ("left_out", "num_skipped", "skipped"):
        del content[name]
    (tmp_path / "manifest.json").write_text(seal(content))
    assert read_manifest(LocalStorage(tmp_path)) == read_manifest(LocalStorage(digit_dataset))


class Short(DigitScenes):
    def read(self, start: int, stop: int) -> Iterator[Sample]:
        return super().read(start, min(stop, 90))


def test_write_tasks_source_ends_early_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: .* task 1"):
        list(write_tasks(Short(100, 16, 3, 0), str(tmp_path), [(0, range(50)), (1, range(50, 100))], DigitsConfig()))
    assert [path.name for path in tmp_path.glob("task-*")] == ["task-00000.json"]


def test_write_tasks_source_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture 17"):
        list(write_tasks(Failing(100, 16, 3, 0), str(tmp_path), [(0, range(100))], DigitsConfig()))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole_manifest(digit_dataset: Path) -> bytes:
    return (digit_dataset / "manifest.json").read_bytes()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2**31), bit=st.integers(0, 7))
def test_manifest_any_flipped_bit_is_detected(whole_manifest: bytes, tmp_path: Path, position: int, bit: int) -> None:
    content = bytearray(whole_manifest)
    content[position % len(content)] ^= 1 << bit
    storage = LocalStorage(tmp_path)
    storage.write("manifest.json", bytes(content))
    try:
        manifest = read_manifest(storage)
    except UserError as error:
        assert re.search(r"manifest\.json.*force=shard", str(error))  # noqa: PT017
    else:  # white space between the values
        storage.write("manifest.json", whole_manifest)
        assert manifest == read_manifest(storage)


def seal(content: dict[str, Any]) -> str:
    """Return a manifest whose hash fits, unlike that of a damaged one."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps({"sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(), **content})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../train-00000"},
        {"name": "train-00000/../../x"},
        {"split": "dest"},
        {"split": "test"},
        {"sha256": "/etc/passwd"},
        {"index_sha256": "../" * 10},
        {"pixels_sha256": "/tmp/precious"},
        {"more": 1},
    ],
)
def test_manifest_hostile_shard_is_rejected(digit_dataset: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads((digit_dataset / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(seal(content))
    assert read_manifest(LocalStorage(tmp_path)) == read_manifest(LocalStorage(digit_dataset))
    content["shards"][0] |= change
    (tmp_path / "manifest.json").write_text(seal(content))
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(LocalStorage(tmp_path))


@pytest.mark.parametrize("damage", ["", "[]", "{", "flip"])
def test_task_file_damaged_task_is_repeated(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path: Path, damage: str
) -> None:
    expected = write_dataset(digit_scenes, tmp_path / "data", digits_config)
    (tmp_path / "data" / "manifest.json").unlink()
    path = tmp_path / "data" / "task-00001.json"
    path.write_text(path.read_text().replace('"num_samples": ', '"num_samples": 1') if damage == "flip" else damage)
    tasks = plan_tasks(digit_scenes, digits_config)
    with pytest.raises(UserError, match=r"task-00001\.json"):
        publish(digit_scenes, digits_config, str(tmp_path / "data"), tasks)
    assert finished_tasks(LocalStorage(tmp_path / "data")) == {0, 2}
    list(write_tasks(digit_scenes, str(tmp_path / "data"), [tasks[1]], digits_config))
    assert publish(digit_scenes, digits_config, str(tmp_path / "data"), tasks) == expected


def test_manifest_damaged_error_names_it(digit_dataset: Path, tmp_path: Path) -> None:
    path = copy(digit_dataset, tmp_path) / "manifest.json"
    valid = json.loads(path.read_text())
    for damaged in (
        "{",
        json.dumps({**valid, "shards": valid["shards"][1:]}),
        json.dumps({**valid, "format": 99}),
        "[]",
    ):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json.*force=shard"):
            read_manifest(LocalStorage(path.parent))
    path.unlink()
    assert read_manifest(LocalStorage(path.parent)) is None
