"""Test that images are refused before they take much memory, and that 16-bit gray keeps its brightness."""

import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.limited_memory import error_with_limited_memory
from PIL import Image

from jobs.data.formats.decoding import decoding
from jobs.data.formats.images import read_image
from jobs.errors import DecodeError, UserError


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def png_of_zeros(width: int, height: int, color: int, row_bytes: int) -> bytes:
    """Return a PNG of this size, without all of its pixels, which are not needed to refuse it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    rows = zlib.compress(bytes(min(height, 1000) * (row_bytes + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_of_one_tile(side: int) -> bytes:
    """Return a TIFF of 16 x 16 pixels in one compressed tile of `side` x `side`."""
    content = zlib.compress(bytes(256))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8), (325, len(content))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + directory + bytes(4)
    )


def read_bombs(folder: str) -> None:
    """Read every file of a folder; raise unless each is refused for its size."""
    for path in sorted(Path(folder).iterdir()):
        with pytest.raises(DecodeError, match="pixels"):
            read_image(path, path.name, 16, 3)


def test_read_image_bombs_are_refused_with_little_memory(tmp_path: Path) -> None:
    bombs = {
        "narrow.png": png_of_zeros(1, 178_000_000, 2, 3),
        "long.png": png_of_zeros(70_000, 8, 2, 210_000),
        "transparent.png": png_of_zeros(9_000, 9_000, 6, 36_000),
        "square.png": png_of_zeros(10_000, 10_000, 2, 30_000),
        "huge.png": png_of_zeros(60_000, 60_000, 0, 60_000),
        "tile.tif": tiff_of_one_tile(60_000),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    assert error_with_limited_memory(150, read_bombs, str(tmp_path)) == ("", "", "")


def test_read_image_large_jpeg_is_decoded_at_half_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.linspace(0, 255, 1200).astype(np.uint8)
    file = encoded(np.repeat(np.repeat(rows[:, None, None], 1200, 1), 3, 2), "JPEG", quality=95)
    exact = read_image(file, "", 16, 3)
    monkeypatch.setattr("jobs.data.formats.images.MAX_DECODED", 3 * 1100**2)
    np.testing.assert_allclose(read_image(file, "", 16, 3).astype(int), exact, atol=2)
    with pytest.raises(DecodeError, match="1,200 x 1,200"):
        read_image(encoded(np.asarray(Image.open(file))), "", 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_image_16_bit_gray_scales_by_bit_depth(kind: str) -> None:
    ramp = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)
    with pytest.raises(UserError, match=r"^a\.png: .*4,095 .*data\.bit_depth"):
        read_image(encoded(ramp, kind), "a.png", 16, 1)
    image = read_image(encoded(ramp, kind), "", 16, 1, bit_depth=12)
    np.testing.assert_allclose(image[..., 0], ramp / 4095 * 255, atol=1)
    np.testing.assert_array_equal(read_image(encoded(ramp, kind), "", 16, 3, bit_depth=16)[..., 0], ramp // 257)
    with pytest.raises(UserError, match=r"data\.bit_depth=10: a\.png"):
        read_image(encoded(ramp, kind), "a.png", 16, 1, bit_depth=10)
    full = ramp * 16
    np.testing.assert_array_equal(read_image(encoded(full, kind), "", 16, 1)[..., 0], full // 257)
    assert read_image(encoded(ramp * 0, kind), "", 16, 1).max() == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOVERFLOW])
def test_decoding_seek_to_a_damaged_offset(number: int) -> None:
    """Where the offset in a file is beyond the limit of the file system, the file is damaged, not closed."""
    with pytest.raises(DecodeError, match=r"^a\.tif: .*Repair it\."), decoding("a.tif", "Repair it.", DecodeError):
        raise OSError(number, "offset")


def png_16_bit_color(largest: int) -> io.BytesIO:
    values = np.linspace(0, largest, 8 * 8 * 3).round().astype(">u2").reshape(8, 24)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = png_of_zeros(8, 8, 2, 0)
    header = content[:24] + b"\x10" + content[25:29]
    header += struct.pack(">I", zlib.crc32(header[12:]))
    data = b"IDAT" + zlib.compress(rows)
    content = header + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) + content[-12:]
    return io.BytesIO(content)


def test_read_image_16_bit_color_of_fewer_bits_raises() -> None:
    full = read_image(png_16_bit_color(65535), "", 8, 3)
    np.testing.assert_allclose(full.ravel(), np.linspace(0, 255, 192), atol=1)
    with pytest.raises(UserError, match=r"^a\.png: .*data\.bit_depth to 16 if"):  # because 12 is refused
        read_image(png_16_bit_color(4095), "a.png", 8, 3)
    with pytest.raises(UserError, match=r"data\.bit_depth=12: a\.png"):
        read_image(png_16_bit_color(4095), "a.png", 8, 3, bit_depth=12)
    assert read_image(png_16_bit_color(4095), "", 8, 3, bit_depth=16).max() == 4095 >> 8


def test_read_image_12_bit_tiff_is_scaled_as_declared() -> None:
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 96)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 104) + packed.astype(np.uint8).tobytes()
    content += struct.pack("<H", len(tags)) + directory + bytes(4)
    image = read_image(io.BytesIO(content), "", 8, 1)
    np.testing.assert_array_equal(image[..., 0], values.astype(int) * 255 // 4095)


@pytest.mark.parametrize("pixels", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70_000, np.int32)])
def test_read_image_32_bits_raises(pixels: np.ndarray) -> None:
    with pytest.raises(DecodeError, match=r"a\.tif: .*32 bits"):
        read_image(encoded(pixels, "TIFF"), "a.tif", 8, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_is_rotated_as_its_orientation_says(kind: str, orientation: int) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(pixels, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    image = read_image(file, "", 16, 3)
    np.testing.assert_allclose(image[3:5, 3:5].astype(int), turned[3:5, 3:5], atol=40)
    np.testing.assert_allclose(image[11:13, 11:13].astype(int), turned[11:13, 11:13], atol=40)


def test_read_image_exif_that_pillow_cannot_write_is_read() -> None:
    """Tag 296 has the type of a float where EXIF requires an integer."""
    directory = struct.pack("<HHIHxx", 0x0112, 3, 1, 6) + struct.pack("<HHIf", 0x0128, 11, 1, 2.0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + directory + bytes(4)
    file = encoded(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, 0), "JPEG", exif=exif)
    image = read_image(file, "", 16, 1)[..., 0].astype(int)
    assert image[0, 8] < 20
    assert image[-1, 8] > 220
