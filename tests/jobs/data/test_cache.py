"""Test the node-local cache: shared by processes, within its limit, complete files only."""

import fcntl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from helpers.datasets import tiny_disk

from jobs.data.cache import MARKER, SUBFOLDER, Cache, CacheFullError
from jobs.errors import UserError


def name_of(number: int) -> str:
    return f"{number:02d}{'0' * 62}.tar"


def content(number: int) -> bytes:
    return bytes([number]) * 1000


def open_number(cache: Cache, number: int, made: list[int] | None = None) -> BinaryIO:
    def make(file: BinaryIO) -> None:
        if made is not None:
            made.append(number)
        file.write(content(number))
        file.truncate()

    return cache.open(name_of(number), 1000, make)


def names(folder: Path) -> set[str]:
    """Return the first part of the names of the cached files, and of partial files with that suffix."""
    paths = [path for path in (folder / SUBFOLDER).iterdir() if path.suffix != ".lock" and path.name != MARKER]
    return {path.name[:2] + (path.suffix if path.suffix == ".partial" else "") for path in paths}


def test_cache_full_removes_least_recently_used(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path, 3000), []
    for number in (1, 2, 3, 1):  # 2 is now the one that was used longest ago
        with open_number(cache, number, made) as file:
            assert file.read() == content(number)
        time.sleep(0.01)
    open_number(cache, 4, made).close()
    assert made == [1, 2, 3, 4]
    assert names(tmp_path) == {"01", "03", "04"}


def test_cache_full_of_open_files_raises(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2000)
    with open_number(cache, 1), open_number(cache, 2), pytest.raises(CacheFullError, match=r"data\.cache_bytes=2000"):
        open_number(cache, 3)
    open_number(cache, 3).close()
    assert "03" in names(tmp_path)
    assert len(names(tmp_path)) == 2


def test_cache_concurrent_opens_make_file_once(tmp_path: Path) -> None:
    made: list[int] = []
    caches = [Cache(tmp_path, 10**6) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda cache: open_number(cache, 7, made), caches))
    assert made == [7]
    for file in files:
        assert file.read() == content(7)
        file.close()


WORKER = """
import hashlib, random, sys
from pathlib import Path
from jobs.data.cache import Cache
cache, made = Cache(Path(sys.argv[1]), 5000), 0
rng = random.Random(int(sys.argv[2]))
for _ in range(300):
    number = rng.randrange(12)
    def make(file):
        for _ in range(10):
            file.write(bytes([number]) * 100)
            file.flush()
        file.truncate()
    with cache.open(f"{number:02d}{'0' * 62}.tar", 1000, make) as file:
        assert file.read() == bytes([number]) * 1000, number
print("done")
"""


def test_cache_shared_by_processes_never_reads_wrong_bytes(tmp_path: Path) -> None:
    """Four processes with space for five of twelve files read only correct and complete files."""
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    for worker in workers:
        out, _ = worker.communicate(timeout=60)
        assert (worker.returncode, out) == (0, "done\n")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar*")) <= 5000


def test_cache_maker_killed_leftover_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from jobs.data.cache import Cache\n"
        "def make(file):\n    file.write(b'x' * 500); file.flush(); print('half', flush=True); sys.stdin.read()\n"
        "Cache(Path(sys.argv[1]), 3000).open(sys.argv[2], 1000, make)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), name_of(5)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        maker.stdout.readline()
        maker.kill()
    assert names(tmp_path) == {"05.partial"}
    with open_number(Cache(tmp_path, 3000), 5) as file:
        assert file.read() == content(5)
    assert names(tmp_path) == {"05"}


def test_cache_maker_fails_leaves_no_file(tmp_path: Path) -> None:
    def make(file: BinaryIO) -> None:
        file.write(b"half")
        raise UserError("the network is down")

    with pytest.raises(UserError, match="network is down"):
        Cache(tmp_path, 3000).open(name_of(5), 1000, make)
    assert names(tmp_path) == set()


def test_cache_disk_full_raises_user_error(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        cache = Cache(folder / "cache", 10**9)
        with pytest.raises(UserError, match=r"disk/cache/.*/05.*data\.cache_dir"):
            cache.open(name_of(5), 10**8, lambda file: None)
        with open_number(cache, 5) as file:
            assert file.read() == content(5)


def test_cache_foreign_files_stay_and_do_not_count(tmp_path: Path) -> None:
    """Files beside the cache and in it, links and folders with its names, are neither removed nor counted."""
    (tmp_path / "outside").mkdir()
    victim = tmp_path / "outside" / name_of(1)
    folder = tmp_path / SUBFOLDER
    folder.mkdir()
    foreign = [parent / name for parent in (tmp_path, folder) for name in ("photos.zip", "video.partial", "x.lock")]
    foreign += [victim, tmp_path / name_of(2), folder / f"{name_of(2)}.1.partial", folder / f"my-{name_of(3)}"]
    for path in foreign:
        path.write_bytes(b"x" * 5000)
    (folder / name_of(1)).symlink_to(victim)
    (folder / name_of(2)).mkdir()
    cache = Cache(tmp_path, 2000)
    for number in (3, 4, 5):
        open_number(cache, number).close()
    assert {path.read_bytes() for path in foreign} == {b"x" * 5000}
    assert (folder / name_of(2)).is_dir()
    assert (folder / name_of(1)).is_symlink()
    assert names(tmp_path) > {"04", "05"}
    assert not (folder / name_of(3)).exists()


def test_cache_link_at_name_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * 1000)
    (tmp_path / SUBFOLDER).mkdir()
    (tmp_path / SUBFOLDER / name_of(5)).symlink_to(victim)
    with open_number(Cache(tmp_path, 3000), 5) as file:
        assert file.read() == content(5)
    assert victim.read_bytes() == b"x" * 1000


@pytest.mark.parametrize("name", ["", "cache.lock", "05.lock"])
def test_cache_link_at_lock_or_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A link at the name of a lock, or of the whole folder, leads nowhere."""
    (tmp_path / "outside").mkdir()
    target = tmp_path / "outside" / name
    if name:
        (tmp_path / SUBFOLDER).mkdir()
    (tmp_path / SUBFOLDER / name).symlink_to(target)
    with pytest.raises(UserError, match=r"vlae-cache.*data\.cache_dir"):
        open_number(Cache(tmp_path, 3000), 5)
    assert not list((tmp_path / "outside").iterdir())


def test_cache_file_gets_its_name_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that counts the files could see this one under neither of its names."""
    replace, locked = Path.replace, []

    def checked(path: Path, target: Path) -> Path:
        with (tmp_path / SUBFOLDER / "cache.lock").open("r+") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", checked)
    open_number(Cache(tmp_path, 3000), 5).close()
    assert locked == [name_of(5)]
