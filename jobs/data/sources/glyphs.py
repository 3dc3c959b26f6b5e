"""Atlas of digit glyphs: 12 faces x 10 digits, 40x40 gray, as a committed PNG.

The file is committed because FreeType's pixels change between versions. `python -m jobs.data.sources.glyphs` draws it
again from the fonts in matplotlib's wheel (DejaVu, STIX, Computer Modern: free licenses).
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 40
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmss10",
    "cmtt10",
)
ATLAS = Path(__file__).with_name("glyphs.png")
SHA256 = "3688c66d165ab692f80088b2dc9c2bd207efb53a4b98142699b8d888b0581e3c"


@cache
def load_atlas() -> NDArray[np.float32]:
    """Return the ink coverage in [0, 1], (12 faces, 10 digits, 40, 40) float32; a changed file raises a ValueError."""
    with Image.open(ATLAS) as image:
        pixels = np.asarray(image.convert("L"))
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{ATLAS}: unexpected content (sha256 of its pixels {digest}). Restore it from the repository."
        )
    cells = pixels.reshape(len(FACES), CELL, 10, CELL).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cells, np.float32) / np.float32(255)


def draw_atlas() -> NDArray[np.uint8]:
    """Draw the atlas, (12 * 40, 10 * 40) uint8: each digit 28 px high, centered in its cell."""
    import matplotlib as mpl  # noqa: PLC0415  (heavy, and needed only to redraw the atlas)

    fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
    atlas = Image.new("L", (10 * CELL, len(FACES) * CELL))
    for row, face in enumerate(FACES):
        for digit in range(10):
            size = 28
            while True:
                font = ImageFont.truetype(fonts / f"{face}.ttf", size)
                left, top, right, bottom = font.getbbox(str(digit))
                if bottom - top >= 28:
                    break
                size += 1
            cell = Image.new("L", (CELL, CELL))
            corner = ((CELL - left - right) / 2, (CELL - top - bottom) / 2)
            ImageDraw.Draw(cell).text(corner, str(digit), fill=255, font=font)
            atlas.paste(cell, (digit * CELL, row * CELL))
    return np.asarray(atlas)


if __name__ == "__main__":
    pixels = draw_atlas()
    Image.fromarray(pixels).save(ATLAS, optimize=True)
    print(hashlib.sha256(pixels.tobytes()).hexdigest())
