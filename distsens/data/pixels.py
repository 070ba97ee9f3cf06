"""Any image that Pillow opens, as red, green and blue in 8 bits; refused where nothing says which value is white."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

# Modes from which Pillow does not convert to RGB in one step, and the one between.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # palettes can hold transparency
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_UNSIGNED, _WHITE_IS_ZERO = 1, 0


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB.

    Grey, palette, CMYK, YCbCr, HSV and LAB images become red, green and blue as Pillow converts them; transparency is
    dropped. Of 16 bits (in TIFF also 12) the higher 8 are kept, so that an image of 8 bits that was stored in 16 is
    what it was, by whichever of the two usual ways.

    Raises
    ------
    ValueError
        Of 32-bit whole numbers, floating-point and signed values nobody says which is black and which is white.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_signed(image)
    if image.mode == "F":
        raise ValueError("it holds floating-point values, which do not say what white is: save it with 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # these hold 16 bits, scaled by their largest value
        raise ValueError("it holds 32-bit numbers, which do not say what white is: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> npt.NDArray[np.uint8]:
    values, bits = np.asarray(image), 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        (bits, *_) = image.tag_v2.get(_BITS, (bits,))
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds in 8 bits, and not in 16
            values = (1 << bits) - 1 - values
    return (values >> (bits - 8)).astype(np.uint8)


def _refuse_signed(image: TiffImagePlugin.TiffImageFile) -> None:
    """Pillow takes signed bytes for unsigned ones."""
    if image.mode == "L" and any(kind != _UNSIGNED for kind in image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))):
        raise ValueError("it holds signed values, which do not say what black is: save it with unsigned ones")
