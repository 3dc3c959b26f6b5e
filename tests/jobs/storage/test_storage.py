"""Test the contract of every storage, on a folder and on a real S3 server."""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from helpers.datasets import tiny_disk

from jobs.errors import UserError
from jobs.storage import open_storage
from jobs.storage.base import Storage
from jobs.storage.local import LocalStorage


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        return open_storage(str(tmp_path / "data"))
    return open_storage(f"s3://{request.getfixturevalue('s3')}/some/data")


def publish(storage: Storage, name: str, content: bytes) -> None:
    with storage.scratch() as folder:
        (folder / name).write_bytes(content)
        storage.publish(folder / name, name)


def fetch(storage: Storage, name: str, digest: str) -> bytes:
    file = io.BytesIO(b"x" * 50)  # space that was reserved beforehand
    storage.fetch(name, file, digest, 2**27)
    return file.getvalue()


def test_storage_written_objects_are_read(storage: Storage) -> None:
    assert storage.read("a.json") is None
    assert list(storage.names()) == []
    storage.write("a.json", b"one")
    storage.write("a.json", b"two")
    assert storage.read("a.json") == b"two"
    publish(storage, "b.tar", b"tar")
    assert fetch(storage, "b.tar", sha256(b"tar").hexdigest()) == b"tar"
    assert set(storage.names()) == {"a.json", "b.tar"}
    assert set(storage.names("a")) == {"a.json"}
    storage.clear("a.json")
    assert list(storage.names()) == []


def test_storage_large_file_is_published(storage: Storage) -> None:
    content = bytes(range(256)) * (40 * 2**20 // 256)
    publish(storage, "large.tar", content)
    assert fetch(storage, "large.tar", sha256(content).hexdigest()) == content


@pytest.mark.slow
def test_storage_concurrent_creates_have_one_winner(storage: Storage) -> None:
    contents = [b"%d" % number for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda content: storage.create("manifest.json", content), contents))
    assert len(set(results)) == 1
    assert storage.read("manifest.json") == results[0]
    assert storage.create("manifest.json", b"late") == results[0]


def test_storage_folders_and_names_are_listed(storage: Storage) -> None:
    for name in ("data-a", "data-b", "other"):
        open_storage(f"{storage.url}/{name}").write("manifest.json", b"{}")
    storage.write("data-file", b"")
    assert set(storage.folders("data-")) == {"data-a", "data-b"}
    assert set(storage.names("data-")) == {"data-file"}


def test_storage_fetch_missing_or_damaged_error_names_it(storage: Storage) -> None:
    with pytest.raises(UserError, match=r"data/c\.tar.*force=shard"):
        fetch(storage, "c.tar", "0" * 64)
    publish(storage, "c.tar", b"content")
    with pytest.raises(UserError, match=r"data/c\.tar.*ed7002b439e9.*000000000000.*force=shard"):
        fetch(storage, "c.tar", "0" * 64)


def test_storage_scratch_is_removed_after_interrupt(storage: Storage) -> None:
    def fail() -> None:
        with storage.scratch() as folder:
            (folder / "half.tar").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(storage.names()) == []
    assert list(storage.folders()) == []


def test_local_storage_sweep_removes_own_leftovers(tmp_path: Path) -> None:
    """A folder of a killed writer goes; folders in use, and those of others with similar names, stay."""
    storage = LocalStorage(tmp_path / "data")
    own, foreign = f".partial-{'0' * 32}", ".partial-holiday"
    for folder in (own, foreign):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "lock").touch()
        (tmp_path / "data" / folder / "half.tar").write_bytes(b"half")
    link = tmp_path / "data" / f".partial-{'1' * 32}"
    shutil.copytree(tmp_path / "data" / own, tmp_path / "outside")
    link.symlink_to(tmp_path / "outside")
    storage.write("a.json", b"")
    with storage.scratch() as scratch:
        storage.sweep()
        assert set(storage.folders()) == {foreign, link.name, scratch.name}
    assert (tmp_path / "outside" / "half.tar").exists()
    assert (tmp_path / "data" / foreign / "half.tar").exists()


def test_local_storage_full_disk_error_names_path(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        storage = LocalStorage(folder / "data")
        with pytest.raises(UserError, match=r"disk/data.*No space left on device"):
            publish(storage, "a.tar", b"x" * 2**21)
        with pytest.raises(UserError, match="disk/data"):
            storage.write("a.json", b"x" * 2**21)
        assert list(storage.names()) == []
        storage.write("a.json", b"small")


def test_local_storage_below_file_error_names_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/data"):
        LocalStorage(tmp_path / "file" / "data").write("a.json", b"")
    with pytest.raises(UserError, match="file/data"):
        LocalStorage(tmp_path / "file" / "data").read("a.json")


def test_storage_create_keeps_the_first_content(storage: Storage) -> None:
    assert storage.create("manifest.json", b"one") == b"one"
    assert storage.create("manifest.json", b"two") == b"one"
    assert storage.read("manifest.json") == b"one"


def test_local_storage_sweep_keeps_scratch_in_use(tmp_path: Path) -> None:
    with LocalStorage(tmp_path).scratch() as folder:
        LocalStorage(tmp_path).sweep()
        assert folder.is_dir()


def test_local_storage_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, a name of a file that was not synchronized may be that of an empty file."""
    synced: list[tuple[bytes, list[str]]] = []
    storage = LocalStorage(tmp_path / "data")

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_bytes(), list(storage.names())))

    monkeypatch.setattr("os.fsync", fsync)
    publish(storage, "a.tar", b"published")
    assert synced == [(b"published", [])]
    storage.create("b.json", b"created")
    assert synced[1:] == [(b"created", ["a.tar"])]
