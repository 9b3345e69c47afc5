"""From a checkpoint to answers: a module in eval mode with its preprocessing and the names of its classes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from lit_transfer.data import convert_image, is_image, read_image
from lit_transfer.modules import TransferModule

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


class Predictor:
    """Answers questions about images with a trained module.

    Attributes:
        module: The module, in eval mode.
        class_names: Names of the classes in the order of the outputs, or None.
        device: Where it computes.
    """

    def __init__(self, module: TransferModule, device: torch.device | str = "cpu", *, batch_size: int = 32) -> None:
        """Put a module into eval mode on a device.

        Args:
            module: A trained module; it is moved, not copied.
            device: Where to compute.
            batch_size: Images that are computed at a time.
        """
        self.device = torch.device(device)
        self.module = module.eval().to(self.device)
        self.class_names: list[str] | None = getattr(module, "class_names", None)
        self.batch_size = batch_size
        self._transform = module.preprocessing.transform()

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Answer for one image, or for several.

        Args:
            images: A path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) is one image and gets
                one answer. A list of these, a folder (its images at any depth, sorted by name) or a tensor
                (N, C, H, W) gets a list. Arrays and tensors are raw images, uint8 from 0 to 255 or floating point
                from 0 to 1: the preprocessing is done here.

        Returns:
            What `module.describe_answer` makes of each answer; a `Prediction` for an `ImageClassifier`.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: If a folder has no image, or an image is broken or of another kind.
        """
        if _is_one(images):
            return next(self.stream([images]))
        several: Iterable[Any] = find_images(images) if isinstance(images, str | Path) else images  # type: ignore[assignment]  # an Image is one
        return list(self.stream(several))

    def stream(self, images: Iterable[Any]) -> Iterator[Any]:
        """Answer for images one after the other, computing a batch at a time."""
        remaining = iter(images)
        while chunk := list(islice(remaining, self.batch_size)):
            outputs = self.outputs(torch.stack([self._transform(self._open(image)) for image in chunk]))
            yield from (self.module.describe_answer(output) for output in outputs)

    @torch.inference_mode()
    def outputs(self, batch: Tensor) -> Tensor:
        """Give what `module.predict_step` gives for preprocessed images (N, C, H, W), on the CPU in float32."""
        return self.module.predict_step(batch.to(self.device)).float().cpu()

    def _open(self, image: ImageLike) -> Image.Image:
        mode = self.module.preprocessing.mode
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise FileNotFoundError(f"No image at {str(image)!r}.")
            return read_image(image, mode)
        return convert_image(image if isinstance(image, Image.Image) else _to_pil(image), mode)


def load_predictor(checkpoint: str | Path, device: str = "auto", *, batch_size: int = 32) -> Predictor:
    """Load a checkpoint that a module of this library saved, ready to answer.

    Args:
        checkpoint: A `.ckpt` file of a `TransferModule` or of a class derived from it.
        device: A torch device, or `"auto"` for the first GPU where there is one, else the CPU.
        batch_size: Images that are computed at a time.

    Raises:
        FileNotFoundError: If the file does not exist.
        WeightsError: If the file is damaged or no such checkpoint.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"No checkpoint at {str(checkpoint)!r}.")
    module = TransferModule.load_from_checkpoint(str(checkpoint), map_location="cpu")
    return Predictor(module, _best_device() if device == "auto" else device, batch_size=batch_size)


def find_images(folder: str | Path) -> list[Path]:
    """List the images of a folder at any depth, sorted; a single image file is a list of one.

    Raises:
        FileNotFoundError: If there is neither a folder nor a file.
        ValueError: If a folder holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"No image and no folder at {str(folder)!r}.")
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if is_image(path))
    if not found:
        raise ValueError(f"The folder {str(folder)!r} holds no image.")
    return found


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_one(images: Any) -> bool:
    if isinstance(images, str | Path):
        return not Path(images).is_dir()
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim <= 3
    return isinstance(images, Image.Image)


def _to_pil(image: np.ndarray[Any, Any] | Tensor) -> Image.Image:
    """Make a PIL image of an array (H, W) or (H, W, C) or a tensor (C, H, W), both raw."""
    tensor = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image.detach().cpu()
    if isinstance(image, np.ndarray) and tensor.ndim == 3:
        tensor = tensor.permute(2, 0, 1)
    if tensor.is_floating_point():
        if tensor.min() < 0 or tensor.max() > 1:
            raise ValueError(
                f"An image of {tensor.dtype} must have values from 0 to 1, got {tensor.min():.3g} to "
                f"{tensor.max():.3g}: give raw images, the preprocessing is done here."
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ValueError(f"An image must be uint8 or floating point, got {tensor.dtype}.")
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ValueError(
            f"An image must be an array (H, W) or (H, W, C) or a tensor (C, H, W) with 1, 3 or 4 channels, "
            f"got the shape {tuple(image.shape)}."
        )
    pil: Image.Image = to_pil_image(tensor)
    return pil
