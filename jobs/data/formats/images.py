"""Pictures as square arrays of eight bits."""

import math
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from jobs.data.formats.decoding import MAX_DECODED, decoding
from jobs.data.formats.npz import read_npy_header
from jobs.errors import DecodeError, UserError

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # not all of PIL's, because each parser is a risk
_MAX_SIDE = 2**16 - 1  # pixels, as JPEG
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REPAIR = "Repair or remove it."
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


def read_image(
    file: Path | IO[bytes], label: str, image_size: int, channels: int, bit_depth: int = 0
) -> NDArray[np.uint8]:
    """Return the first frame of an image, rotated by its EXIF orientation, as `fit_square` returns it.

    Args:
        file: Path or content.
        label: Name of the image in messages.
        image_size: Height and width of the result.
        channels: 3, or 1 for gray.
        bit_depth: Bits that 16-bit images use; 0: all, and an image that uses fewer than 15 is an error.

    Raises:
        DecodeError: The image is damaged, or too large to be decoded.
        UserError: The image cannot be read, or `bit_depth` does not fit it.
    """
    # Warnings are ignored, because Pillow warns of damage in metadata and of sizes that are limited here.
    with decoding(label, _REPAIR, DecodeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            raise DecodeError(f"{label}: not an image. {_REPAIR}") from None
        with image:
            _check_size(image)
            stored_bits = _stored_bits(image)
            eight_bits = _to_eight_bits(_upright(image), label, stored_bits, bit_depth)
            return fit_square(eight_bits, image_size, channels)


def read_npy_image(content: bytes, label: str, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Return an .npy of uint8, (height, width) or (height, width, 1, 3 or 4), as `fit_square` returns it.

    Raises:
        DecodeError: The array is damaged, too large, or of another shape or type.
    """
    with decoding(label, _REPAIR, DecodeError):
        return fit_square(Image.fromarray(_npy_pixels(content)), image_size, channels)


def _npy_pixels(content: bytes) -> NDArray[np.uint8]:
    stream = BytesIO(content)
    shape, dtype, fortran = read_npy_header(stream)
    if dtype != np.uint8 or len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (3,), (4,)}:
        raise ValueError(f"{dtype} {shape} instead of uint8 (height, width) or (height, width, 1, 3 or 4)")
    _check_pixels(shape[1], shape[0], math.prod(shape[2:]))
    pixels = np.frombuffer(content, np.uint8, math.prod(shape), stream.tell())
    pixels = pixels.reshape(shape, order="F" if fortran else "C")
    return pixels[..., 0] if shape[2:] == (1,) else pixels


def _check_size(image: Image.Image) -> None:
    """Raise a ValueError for an image that is too large to be decoded; a large JPEG is decoded at half its size."""
    bands = 4 if image.has_transparency_data else 2 if image.mode.startswith("I") else len(image.getbands())
    if image.width * image.height * bands > MAX_DECODED:
        image.draft(None, (image.width // 2, image.height // 2))
    _check_pixels(image.width, image.height, bands)
    if isinstance(image, TiffImageFile) and _TILE_WIDTH in image.tag_v2:
        _check_pixels(image.tag_v2[_TILE_WIDTH], image.tag_v2[_TILE_LENGTH], bands)


def _check_pixels(width: int, height: int, bands: int) -> None:
    if max(width, height) > _MAX_SIDE or width * height * bands > MAX_DECODED:
        raise ValueError(f"{width:,} x {height:,} pixels are too many")


def _stored_bits(image: ImageFile) -> int:
    """Return the bits per value in the file of an image that was not loaded yet."""
    raw_modes = "".join(str(tile.args) for tile in image.tile) if image.format in ("PNG", "TIFF") else ""
    return 16 if ";16" in raw_modes else 12 if "I;12" in raw_modes else 8


def _to_eight_bits(image: Image.Image, label: str, stored_bits: int, bit_depth: int) -> Image.Image:
    """Scale gray of 16 or 12 bits to 8 bits, and return any other image as it is."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits or signed values instead of 8 or 16 bits")
    if stored_bits == 8:
        return image
    gray = image.mode.startswith("I;16")
    pixels = np.asarray(image if gray else image.convert("RGB"))
    # Pillow keeps the upper eight bits of color only.
    largest = int(pixels.max()) if gray else int(pixels.max()) << 8 | 0xFF
    if stored_bits == 16 and not bit_depth and 0 < largest < 2**14:
        raise UserError(
            f"{label}: a 16-bit image with values up to {largest:,} only. Set data.bit_depth to "
            + (
                "the bits that the images use, such as 12, or to 16 if they are dark."
                if gray
                else "16 if they are dark, or convert them to 8 bits."
            )
        )
    depth = 12 if stored_bits == 12 else bit_depth or 16
    if largest >= 2**depth or (depth < 16 and not gray):
        kind = f"16-bit values up to {largest:,}" if gray else "16-bit color"
        raise UserError(f"data.bit_depth={depth}: {label} has {kind}. Set data.bit_depth=16.")
    if not gray:
        return image
    values = pixels.astype(np.uint32)
    values *= 255
    values //= 2**depth - 1
    return Image.fromarray(values.astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    """Return an image rotated by its EXIF orientation."""
    # Not `ImageOps.exif_transpose`, because that fails on EXIF data that Pillow cannot write.
    image.load()  # because Pillow itself rotates a TIFF here, and removes its orientation
    method = _UPRIGHT.get(image.getexif().get(Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def fit_square(image: Image.Image, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Return the central square, (image_size, image_size, 3 or 1 for gray) uint8; transparent pixels become white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB" if channels == 3 else "L")
    square = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(square, np.uint8).reshape(image_size, image_size, channels)


def resize_square(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize a square image, (size, size, 3) or (size, size) uint8, by a Lanczos filter."""
    image = np.ascontiguousarray(image)
    if image_size == len(image):
        return image
    return np.asarray(Image.fromarray(image).resize((image_size, image_size), Image.Resampling.LANCZOS))
