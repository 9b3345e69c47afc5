"""From a checkpoint to answers: a module in eval mode with its preprocessing and the names of its classes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from lit_transfer.backbones import Preprocessing
from lit_transfer.data import convert_image, is_image, read_pixels
from lit_transfer.features import pieces
from lit_transfer.lora import merge_lora
from lit_transfer.modules import ImageClassifier, TransferModule, read_saved
from lit_transfer.restore import read_training_state
from lit_transfer.weights import WeightsError
from lit_transfer.weights._report import few

_MOST_READERS = 8  # threads: beyond, they wait for each other
Tta = Literal["flip", "crops"]
ImageLike = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


class Predictor:
    """Answers questions about images with a trained module.

    Attributes:
        module: The module, in eval mode.
        preprocessing: How images are made ready for it.
        class_names: Names of the classes in the order of the outputs, or None.
        output_names: Names of the classes, labels or targets in the order of the outputs, or None.
        device: Where it computes.
        tta: Over which views of an image answers are averaged; None for the image alone.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 32,
        preprocessing: Preprocessing | None = None,
        tta: Tta | None = None,
    ) -> None:
        """Put a module into eval mode on a device.

        Args:
            module: A trained module; it is moved, not copied.
            device: Where to compute.
            batch_size: Images that are computed at a time; a processor does so in pieces of about 8.
            preprocessing: How images are made ready; the module's own if not given.
            tta: Test-time augmentation: the answer is the mean of what the module gives (probabilities, or numbers)
                for several views of an image, the same ones each time. `"flip"`: the image and its mirror image, at
                twice the computing; only where left and right mean the same. `"crops"`: the four corners and the
                centre, each of the size that the module sees, and their mirror images, at ten times.

        Raises:
            ValueError: If the module has no preprocessing, and none is given; or if `tta` is unknown.
        """
        if tta is not None and tta not in get_args(Tta):
            raise ValueError(f"tta={tta!r} is unknown; expected {' or '.join(map(repr, get_args(Tta)))}, or None.")
        preprocessing = preprocessing or getattr(module, "preprocessing", None)
        if preprocessing is None:
            raise ValueError(
                f"{type(module).__name__} does not say how images are made ready for it: give preprocessing=, for "
                "example lit_transfer.backbones.Preprocessing(resize=256, crop=224, mean=(...), std=(...))."
            )
        self.device = torch.device(device)
        self.module = module.eval().to(self.device)
        self.class_names: list[str] | None = getattr(module, "class_names", None)
        self.output_names: list[str] | None = getattr(module, "output_names", None)
        self.batch_size, self.preprocessing = batch_size, preprocessing
        self.tta = tta
        self._transform = preprocessing.transform()
        if tta == "crops":
            cuts = [
                v2.FiveCrop(preprocessing.crop) if isinstance(step, v2.CenterCrop) else step
                for step in self._transform.transforms
            ]
            self._transform = v2.Compose(cuts)
        self._compute = getattr(module, "predict_step", module)
        self._describe = getattr(module, "describe_answer", Tensor.tolist)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Answer for one image, or for several.

        Args:
            images: A path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) is one image and gets
                one answer. A list of these, a folder (its images at any depth, sorted by name) or a tensor
                (N, C, H, W) gets a list. Arrays and tensors are raw images, uint8 from 0 to 255 or floating point
                from 0 to 1: the preprocessing is done here.

        Returns:
            What `module.describe_answer` makes of each answer; a `Prediction` for an `ImageClassifier`, an
            `Estimate` for an `ImageRegressor`, a `LabelPrediction` for a `MultiLabelClassifier`.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: If a folder has no image, or an image is broken or of another kind.
        """
        if _is_one(images):
            return next(self.stream([images]))
        several: Iterable[Any] = find_images(images) if isinstance(images, str | Path) else images  # type: ignore[assignment]  # an Image is one
        return list(self.stream(several))

    def stream(self, images: Iterable[Any]) -> Iterator[Any]:
        """Answer for images one after the other, computing a batch at a time while threads read the next one."""
        with ThreadPoolExecutor(min(_MOST_READERS, suggested_max_num_workers(1) + 1)) as readers:
            batches = self._read_ahead(iter(images), readers)
            try:
                for batch in batches:
                    yield from (self._describe(output) for output in self.outputs(batch))
            finally:
                readers.shutdown(cancel_futures=True)

    def _read_ahead(self, images: Iterator[Any], readers: ThreadPoolExecutor) -> Iterator[Tensor]:
        """Yield batches (N, C, H, W), with crops (N, 5, C, H, W); while one is worked on, the next one is read."""
        ahead: deque[list[Future[Tensor]]] = deque()
        while True:
            while len(ahead) < 2 and (chunk := list(islice(images, self.batch_size))):
                ahead.append([readers.submit(self._read, image) for image in chunk])
            if not ahead:
                return
            yield torch.stack([image.result() for image in ahead.popleft()])

    def _read(self, image: ImageLike) -> Tensor:
        ready: Tensor | tuple[Tensor, ...] = self._transform(self._open(image))
        return ready if isinstance(ready, Tensor) else torch.stack(ready)

    @torch.inference_mode()
    def outputs(self, batch: Tensor) -> Tensor:
        """Give what `module.predict_step` (or a plain module) gives, on the CPU in float32; with `tta` the mean.

        Args:
            batch: Images made ready, (N, C, H, W), or several crops of each, (N, crops, C, H, W).
        """
        views = list(batch.unbind(1)) if batch.ndim == 5 else [batch]
        answers = [self._plain(view) for view in views]
        if self.tta is not None:
            answers += [self._plain(view.flip(-1)) for view in views]
        return answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)

    def _plain(self, batch: Tensor) -> Tensor:
        number = (0,) if isinstance(self.module, LightningModule) else ()
        answers = [self._compute(piece, *number) for piece in pieces(batch.to(self.device))]
        return torch.cat(answers).float().cpu()

    def _open(self, image: ImageLike) -> Image.Image | Tensor:
        mode = self.preprocessing.mode
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise FileNotFoundError(f"No image at {str(image)!r}.")
            return read_pixels(image, mode)
        return convert_image(image if isinstance(image, Image.Image) else _to_pil(image), mode)


def load_predictor(
    checkpoint: str | Path,
    device: str = "auto",
    *,
    batch_size: int = 32,
    module: nn.Module | None = None,
    preprocessing: Preprocessing | None = None,
    tta: Tta | None = None,
) -> Predictor:
    """Load a checkpoint, ready to answer.

    Args:
        checkpoint: A `.ckpt` file of a `TransferModule` or of a class derived from it; with `module`, any training
            checkpoint that `TolerantRestore` takes.
        device: A torch device, or `"auto"` for the first GPU where there is one, else the CPU.
        batch_size: Images that are computed at a time; a processor does so in pieces of about 8.
        module: The module that a foreign checkpoint fills, which no such file describes. It is filled in place.
        preprocessing: How images are made ready, for a module that does not say.
        tta: Test-time augmentation, `"flip"` or `"crops"`: see `Predictor`.

    Raises:
        FileNotFoundError: If the file does not exist.
        WeightsError: If the file is damaged or no such checkpoint, or does not fill the module.
        ValueError: If the module has no preprocessing, and none is given; or if `tta` is unknown.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"No checkpoint at {str(checkpoint)!r}.")
    if module is not None:
        _fill(module, checkpoint)
    elif read_saved(checkpoint) is None:
        raise WeightsError(
            f"{checkpoint} is no checkpoint of a TransferModule, so that nothing in it tells which module its weights "
            "are for. Give that module: load_predictor(PATH, module=ImageClassifier('resnet18', weights=None, "
            "num_classes=2)), or any nn.Module with preprocessing=Preprocessing(...)."
        )
    else:
        module = TransferModule.load_from_checkpoint(str(checkpoint), map_location="cpu")
        merge_lora(module)
    device = _best_device() if device == "auto" else device
    return Predictor(module, device, batch_size=batch_size, preprocessing=preprocessing, tta=tta)


def _fill(module: nn.Module, checkpoint: str | Path) -> None:
    """Fill all of a module from any training checkpoint."""
    state = read_training_state(module, checkpoint, optimizer="fresh")
    if state.fresh:
        raise WeightsError(f"{checkpoint} does not fill {few(state.fresh)}: the answers would be random")
    module.load_state_dict(state.weights(module))
    if isinstance(module, ImageClassifier) and (saved := read_saved(checkpoint)):
        module.temperature.fill_(saved[0].get("temperature", 1.0))


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
