"""Picture files as square arrays of eight bits."""

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.errors import UserError

_FORMATS = ("PNG", "JPEG", "WEBP")  # PIL knows many more, each with its own holes


def read_picture(file: Path | IO[bytes], name: str, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Read a PNG, JPEG or WebP, turned upright as its EXIF says.

    Args:
        file: where it is.
        name: of the picture in an error message.
        image_size: height and width of the result, pixels.
        channels: 3 for color, 1 for gray.

    Returns:
        (image_size, image_size, channels) uint8.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return fit_square(ImageOps.exif_transpose(image), image_size, channels)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as a picture ({error}): mend it or move it away") from error


def fit_square(image: Image.Image, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Center-crop to a square and resize; transparency becomes white.

    Returns:
        (image_size, image_size, channels) uint8.
    """
    opaque = _opaque(image).convert("RGB" if channels == 3 else "L")
    square = ImageOps.fit(opaque, (image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(square, np.uint8).reshape(image_size, image_size, channels)


def _opaque(image: Image.Image) -> Image.Image:
    """Eight bits per channel and no transparency: 16-bit gray is scaled, and white shows through what is clear."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
