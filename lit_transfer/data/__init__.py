"""Images as LightningDataModules, made ready for the module being trained."""

from lit_transfer.data._images import convert_image, is_image, read_image, read_pixels
from lit_transfer.data._resumable import ResumableLoader
from lit_transfer.data.digits import DigitsData
from lit_transfer.data.image_folder import ImageFolderData
from lit_transfer.data.table import TableData

__all__ = [
    "DigitsData",
    "ImageFolderData",
    "ResumableLoader",
    "TableData",
    "convert_image",
    "is_image",
    "read_image",
    "read_pixels",
]
