"""PNG, JPEG and WebP images as square arrays of eight bits."""

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.errors import UserError, first_line

_FORMATS = ("PNG", "JPEG", "WEBP")  # not all of PIL's, because each parser is a risk
# Pillow raises these for damaged images; UnidentifiedImageError is an OSError.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def invalid_image(label: str, error: Exception) -> str:
    """Return the message for an image that cannot be read."""
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
    return f"{label}: invalid image ({reason}). Repair or remove it."


def read_image(file: Path | IO[bytes], label: str, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Return a PNG, JPEG or WebP, rotated as its EXIF data says, through `fit_square`; failure raises a UserError."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return fit_square(ImageOps.exif_transpose(image), image_size, channels)
    except IMAGE_ERRORS as error:
        raise UserError(invalid_image(label, error)) from error


def fit_square(image: Image.Image, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Return the central square, (image_size, image_size, 3 or 1 for gray) uint8; transparent pixels become white."""
    if image.mode.startswith("I"):  # 16-bit gray
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    elif image.has_transparency_data:
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
