"""What every store keeps to, on a folder and on a real S3 server."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from helpers.datasets import tiny_disk

from jobs.errors import UserError
from jobs.storage import open_store
from jobs.storage.base import Store
from jobs.storage.local import LocalStore


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        return open_store(str(tmp_path / "place"))
    return open_store(f"s3://{request.getfixturevalue('s3')}/some/place")


def publish(store: Store, name: str, content: bytes) -> None:
    with store.scratch() as folder:
        (folder / name).write_bytes(content)
        store.publish(folder / name, name)


def fetch(store: Store, name: str, digest: str) -> bytes:
    file = io.BytesIO(b"x" * 50)  # room that was made beforehand
    store.fetch(name, file, digest)
    return file.getvalue()


def test_what_is_written_is_read(store: Store) -> None:
    assert store.read("a.json") is None
    assert list(store.names()) == []
    store.write("a.json", b"one")
    store.write("a.json", b"two")
    assert store.read("a.json") == b"two"
    publish(store, "b.tar", b"tar")
    assert fetch(store, "b.tar", sha256(b"tar").hexdigest()) == b"tar"
    assert set(store.names()) == {"a.json", "b.tar"}
    assert set(store.names("a")) == {"a.json"}
    store.clear("a.json")
    assert list(store.names()) == []


def test_large_files_go_in_parts(store: Store) -> None:
    content = bytes(range(256)) * (40 * 2**20 // 256)
    publish(store, "large.tar", content)
    assert fetch(store, "large.tar", sha256(content).hexdigest()) == content


@pytest.mark.slow
def test_one_of_several_creates(store: Store) -> None:
    contents = [b"%d" % number for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        there = list(pool.map(lambda content: store.create("manifest.json", content), contents))
    assert len(set(there)) == 1
    assert store.read("manifest.json") == there[0]
    assert store.create("manifest.json", b"late") == there[0]


def test_folders_are_seen(store: Store) -> None:
    for name in ("data-a", "data-b", "other"):
        open_store(f"{store.url}/{name}").write("manifest.json", b"{}")
    store.write("data-file", b"")
    assert set(store.folders("data-")) == {"data-a", "data-b"}
    assert set(store.names("data-")) == {"data-file"}


def test_missing_and_damaged_objects_are_named(store: Store) -> None:
    with pytest.raises(UserError, match=r"place/c\.tar is missing.*force=shard"):
        fetch(store, "c.tar", "0" * 64)
    publish(store, "c.tar", b"content")
    with pytest.raises(UserError, match=r"place/c\.tar is damaged \(sha256 ed7002b439e9, manifest 000000000000\)"):
        fetch(store, "c.tar", "0" * 64)


def test_a_scratch_folder_goes_with_its_writer(store: Store) -> None:
    def fail() -> None:
        with store.scratch() as folder:
            (folder / "half.tar").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(store.names()) == []
    assert list(store.folders()) == []


def test_sweep_removes_what_killed_writers_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / ".partial-123").mkdir()
    (tmp_path / ".partial-123" / "lock").touch()
    (tmp_path / ".partial-123" / "half.tar").write_bytes(b"half")
    store.write("a.json", b"")
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        store = LocalStore(folder / "place")
        with pytest.raises(UserError, match=r"disk/place.*No space left on device; mend that and run again"):
            publish(store, "a.tar", b"x" * 2**21)
        with pytest.raises(UserError, match="No space left"):
            store.write("a.json", b"x" * 2**21)
        assert list(store.names()) == []
        store.write("a.json", b"small")


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/place"):
        LocalStore(tmp_path / "file" / "place").write("a.json", b"")
    with pytest.raises(UserError, match="file"):
        LocalStore(tmp_path / "file" / "place").read("a.json")
