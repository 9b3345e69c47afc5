"""Image files, read the way a viewer shows them."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

# What torchvision's ImageFolder takes. GIF is not among them: in photo folders it is a placeholder or an animation.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_image(path: str | Path) -> bool:
    """Tell by its name whether a file is an image; hidden files are not (`._photo.jpg` of an archive made on a Mac)."""
    path = Path(path)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def check_header(path: str | Path) -> None:
    """Read as much of an image file as tells its format and size, no pixels.

    Raises:
        ValueError: If the file is no image that can be opened; it names the file.
    """
    if why := why_broken(path):
        raise _broken(path, why)


def why_broken(path: str | Path) -> str | None:
    """Say why an image file cannot be opened, by as much of it as tells its format and size; None if it can."""
    try:
        Image.open(path).close()
    except Exception as error:  # Pillow's decoders raise many kinds
        return _reason(error)
    return None


def read_image(path: str | Path, mode: str = "RGB") -> Image.Image:
    """Read an image file as `convert_image` gives it.

    Args:
        path: The file.
        mode: `"L"`, `"RGB"` or `"RGBA"`.

    Raises:
        ValueError: If the file cannot be decoded; it names the file.
    """
    try:
        with Image.open(path) as image:
            return convert_image(image, mode)
    except Exception as error:  # Pillow's decoders raise many kinds; whichever it is, the file must be named
        raise _broken(path, _reason(error)) from error


def read_pixels(path: str | Path, mode: str = "RGB") -> Tensor:
    """Read an image file as `convert_image` gives it, as a tensor.

    Args:
        path: The file.
        mode: `"L"`, `"RGB"` or `"RGBA"`.

    Returns:
        uint8, (C, H, W).

    Raises:
        ValueError: If the file cannot be decoded; it names the file.
    """
    pixels: Tensor = pil_to_tensor(read_image(path, mode))
    return pixels


def convert_image(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Bring an image upright and to 8 bits of grey, RGB or RGBA.

    The camera's orientation tag is applied, 16-bit grey is scaled to 8 bits, and what is transparent becomes white
    where the mode has no alpha channel.

    Args:
        image: An image of any mode.
        mode: `"L"`, `"RGB"` or `"RGBA"`.

    Raises:
        ValueError: If its values have no known range (32-bit integers beyond 16 bits, floating point).
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # otherwise it is copied for nothing
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, which Pillow's own conversion clips to white; older releases open such a file in mode I."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"mode {image.mode!r} with values from {values.min()} to {values.max()} has no known range")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _reason(error: Exception) -> str:
    return "its content is of no known image format" if isinstance(error, UnidentifiedImageError) else str(error)


def _broken(path: str | Path, why: str) -> ValueError:
    return ValueError(f"broken image {str(path)!r}: {why}. Repair the file, or leave it out of data.root or the table.")
