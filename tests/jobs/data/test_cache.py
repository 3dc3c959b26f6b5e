"""Test the node-local cache: shared by processes, within its limit, complete files only."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from helpers.datasets import tiny_disk

from jobs.data.cache import Cache, CacheFullError
from jobs.errors import UserError


def content(number: int) -> bytes:
    return bytes([number]) * 1000


def open_number(cache: Cache, number: int, made: list[int] | None = None) -> BinaryIO:
    def make(file: BinaryIO) -> None:
        if made is not None:
            made.append(number)
        file.write(content(number))
        file.truncate()

    return cache.open(f"{number:02d}.tar", 1000, make)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_cache_full_removes_least_recently_used(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path, 3000), []
    for number in (1, 2, 3, 1):  # 2 is now the one that was used longest ago
        with open_number(cache, number, made) as file:
            assert file.read() == content(number)
        time.sleep(0.01)
    open_number(cache, 4, made).close()
    assert made == [1, 2, 3, 4]
    assert names(tmp_path) == {"01.tar", "03.tar", "04.tar"}


def test_cache_full_of_open_files_raises(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2000)
    with open_number(cache, 1), open_number(cache, 2), pytest.raises(CacheFullError, match=r"data\.cache_bytes=2000"):
        open_number(cache, 3)
    open_number(cache, 3).close()
    assert "03.tar" in names(tmp_path)
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
    with cache.open(f"{number:02d}.tar", 1000, make) as file:
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
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000


def test_cache_maker_killed_leftover_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from jobs.data.cache import Cache\n"
        "def make(file):\n    file.write(b'x' * 500); file.flush(); print('half', flush=True); sys.stdin.read()\n"
        "Cache(Path(sys.argv[1]), 3000).open('05.tar', 1000, make)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        maker.stdout.readline()
        maker.kill()
    assert any(name.endswith(".partial") for name in names(tmp_path))
    with open_number(Cache(tmp_path, 3000), 5) as file:
        assert file.read() == content(5)
    assert names(tmp_path) == {"05.tar"}


def test_cache_maker_fails_leaves_no_file(tmp_path: Path) -> None:
    def make(file: BinaryIO) -> None:
        file.write(b"half")
        raise UserError("the network is down")

    with pytest.raises(UserError, match="network is down"):
        Cache(tmp_path, 3000).open("05.tar", 1000, make)
    assert names(tmp_path) == set()


def test_cache_disk_full_raises_user_error(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as folder:
        cache = Cache(folder / "cache", 10**9)
        with pytest.raises(UserError, match=r"disk/cache/05.*data\.cache_dir"):
            cache.open("05.tar", 10**8, lambda file: None)
        with open_number(cache, 5) as file:
            assert file.read() == content(5)
