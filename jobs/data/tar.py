"""Tar archives written as fast as their bytes can be hashed.

The bytes are those of `webdataset.TarWriter(mtime=0)`: plain ustar headers made by the standard library, of
which only name, size and checksum change from member to member.
"""

import tarfile
from functools import lru_cache

BLOCK = 512  # every header is one, and every member is padded to whole ones
PADDING = [bytes(size) for size in range(BLOCK)]  # zeros from the end of a content to the next block
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11  # what eleven octal digits cannot hold


def _blank_header() -> bytes:
    """A header with the fields that all members share, and spaces for the checksum, as its sum wants them."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o444, 0
    info.uname = info.gname = "bigdata"  # what webdataset writes
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[_SIZE] = b"\0" * 12
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_BLANK = _blank_header()
_BLANK_SUM = sum(_BLANK)


def member_header(name: bytes, size: int) -> bytes:
    """The header block of a file member.

    Args:
        name: 1 to 100 ASCII bytes.
        size: of the content, bytes, below 8 GiB.

    Raises:
        ValueError: the name or the size does not fit a plain header.
    """
    if not 0 < len(name) <= 100 or not name.isascii() or not 0 <= size < _LARGEST:
        raise ValueError(f"a member {name!r} of {size} bytes does not fit a plain tar header")
    middle, middle_sum = _after_name(size)
    return b"%b%b%06o\0 %b" % (name.ljust(100, b"\0"), middle, middle_sum + sum(name), _BLANK[_CHECKSUM.stop :])


@lru_cache(1024)  # members of one kind have a size or two
def _after_name(size: int) -> tuple[bytes, int]:
    """A header's bytes from the name to the checksum, and the sum of all but the name."""
    octal = b"%011o\0" % size
    middle = _BLANK[_NAME.stop : _SIZE.start] + octal + _BLANK[_SIZE.stop : _CHECKSUM.start]
    return middle, _BLANK_SUM + sum(octal)


def end_of_archive(size: int) -> bytes:
    """The zeros that end an archive of `size` bytes: two blocks at least, up to a whole record."""
    return b"\0" * (2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)
