"""Test that complete tars are read, and that no damage is taken for the end of one."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import webdataset

from jobs.data.formats.tar_stream import SampleNames, tar_members, tar_samples
from jobs.errors import UserError

NAMES = SampleNames(frozenset({"bin", "cls", "png"}))
PAYLOADS = {"0.bin": b"a" * 700, "0.cls": b"0", "1.bin": b"b" * 1024, "1.cls": b"1"}


def write(path: Path) -> tuple[bytes, int]:
    """Write a tar by webdataset itself, with fractional times, which require PAX headers.

    Returns:
        Its content, and the number of bytes up to the second block of zeros, which are needed.
    """
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(2):
            writer.write({"__key__": str(number), "bin": PAYLOADS[f"{number}.bin"], "cls": number})
    content = path.read_bytes()
    assert b"PaxHeader" in content
    used = len(content.rstrip(b"\0"))
    return content, used + -used % 512 + 1024


def read(path: Path) -> dict[str, bytes | None]:
    return dict(tar_members(path, lambda name: True))


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
def test_tar_members_selected_content_is_read(tmp_path: Path, compress) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(compress(write(path)[0]))
    assert read(path) == PAYLOADS
    selected = dict(tar_members(path, lambda name: name.startswith("1")))
    assert selected == {"0.bin": None, "0.cls": None, "1.bin": PAYLOADS["1.bin"], "1.cls": b"1"}
    assert dict(tar_samples(path, ("cls",), NAMES)) == {"0": {"bin": b"", "cls": b"0"}, "1": {"bin": b"", "cls": b"1"}}


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_samples_long_names_are_distinct(tmp_path: Path, kind: int) -> None:
    """The names differ after their first hundred characters only, and the folder's name has dots."""
    path, stems = tmp_path / "0.tar", [f"{'v1.0-' * 20}/{'x' * 150}{number}" for number in range(3)]
    with tarfile.open(path, "w", format=kind) as tar:
        for number, stem in enumerate(stems):
            for extension in ("CLS", "seg.png"):
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"%d" % number))
    assert (b"././@LongLink" in path.read_bytes()) == (kind == tarfile.GNU_FORMAT)
    assert list(tar_samples(path, ("cls",), NAMES)) == [
        (stem, {"cls": b"%d" % number, "seg.png": b""}) for number, stem in enumerate(stems)
    ]


@pytest.mark.parametrize("selected", [True, False])
def test_tar_members_any_truncation_raises(tmp_path: Path, selected: bool) -> None:
    """The tar is cut in headers, payloads, padding, between members, and before the end."""
    path = tmp_path / "0.tar"
    content, needed = write(path)
    for length in [*range(0, needed, 32), needed - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"0\.tar: "):
            list(tar_members(path, lambda name: selected))
    path.write_bytes(content[:needed])
    assert read(path) == PAYLOADS


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_tar_members_any_compressed_truncation_raises(tmp_path: Path, compress) -> None:
    path = tmp_path / "0.tgz"
    content = compress(write(tmp_path / "0.tar")[0])
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"0\.tgz: "):
            read(path)


def test_tar_members_gzip_checksum_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "0.tgz"
    content = gzip.compress(write(tmp_path / "0.tar")[0])
    path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    with pytest.raises(UserError, match=r"0\.tgz: .*CRC"):
        read(path)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_tar_members_links_are_read_as_their_targets(tmp_path: Path) -> None:
    """Hard links name a target from the root of the tar, symbolic links from their own folder, and links may chain."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(link("b/early.bin", "../a/0.bin", tarfile.SYMTYPE))
        info = tarfile.TarInfo("./a/0.bin")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        tar.addfile(link("1.bin", "a/0.bin", tarfile.LNKTYPE))
        tar.addfile(link("2.bin", "1.bin", tarfile.SYMTYPE))
        for name, target in (
            ("out.bin", "../0.bin"),
            ("loop.bin", "loop.bin"),
            ("none.bin", "3.bin"),
            ("dir.bin", "a"),
        ):
            tar.addfile(link(name, target, tarfile.SYMTYPE))
    left_out: Counter[str] = Counter()
    assert dict(tar_members(path, lambda name: name != "2.bin", left_out)) == {
        "b/early.bin": b"abc",
        "./a/0.bin": b"abc",
        "1.bin": b"abc",
        "2.bin": None,
    }
    assert left_out == {"links without a target in the tar": 4}
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"0\.tar: .*early\.bin"):
        read(path)


def test_tar_members_any_damaged_header_raises(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    content, _ = write(path)
    with tarfile.open(path) as tar:  # the first block of each member's PAX header, and its own header
        starts = [block for info in tar for block in (info.offset, info.offset_data - 512)]
    assert len(set(starts)) == 8
    for start in starts:
        path.write_bytes(content[: start + 2] + b"?" + content[start + 3 :])
        with pytest.raises(UserError, match=r"0\.tar: "):
            read(path)


def test_tar_members_damaged_header_before_zeros_raises(tmp_path: Path) -> None:
    """The payload of the last member looks like the end of the archive."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("0.bin", "1.bin"):
            info = tarfile.TarInfo(name)
            info.size = 1024
            tar.addfile(info, io.BytesIO(bytes(1024)))
    content = path.read_bytes()
    assert read(path) == {"0.bin": bytes(1024), "1.bin": bytes(1024)}
    path.write_bytes(content.replace(b"1.bin", b"2.bin"))
    with pytest.raises(UserError, match=r"0\.tar: .*checksum"):
        read(path)


def test_tar_members_wrong_end_raises(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    content, needed = write(path)
    for end in (b"\1", content):  # as of `cat 0.tar 1.tar`
        path.write_bytes(content + end)
        with pytest.raises(UserError, match=r"0\.tar: "):
            read(path)
    path.write_bytes(content[: needed - 512])
    with pytest.raises(UserError, match=r"0\.tar: "):
        read(path)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("0.cls", -512), "-512 bytes"),
        (header("long", 2**40, tarfile.GNUTYPE_LONGNAME), "1099511627776 bytes"),
        (header("0.cls", 2**40), r"0\.cls.* 1,099,511,627,776 .*268,435,456"),
        (
            header("x", 512, tarfile.XHDTYPE) + b"15 size=-10240\n".ljust(512, b"\0") + header("0.cls", 0),
            "-10240 bytes",
        ),
        (header("x", 512, tarfile.XHDTYPE) + b"0 size=1\n".ljust(512, b"\0") + header("0.cls", 0), "invalid header"),
    ],
)
def test_tar_members_hostile_size_raises(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(content + bytes(10240))
    with pytest.raises(UserError, match=rf"0\.tar: .*{message}"):
        read(tmp_path / "0.tar")


def test_tar_members_memory_is_constant(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3000):
            tar.addfile(tarfile.TarInfo(f"{number}.cls"))
    tracemalloc.start()
    try:
        members = tar_members(path, lambda name: True)
        next(members)
        before = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in members) == 2999
        assert tracemalloc.get_traced_memory()[1] - before < 200_000
    finally:
        tracemalloc.stop()


def test_tar_samples_duplicate_member_raises(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("0.cls", "1.cls", "0.CLS", "0.cls"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    samples = tar_samples(tmp_path / "0.tar", ("cls",), NAMES)
    assert [next(samples), next(samples)] == [("0", {"cls": b""}), ("1", {"cls": b""})]
    with pytest.raises(UserError, match=r"0\.tar: .* 0\.cls"):
        next(samples)
