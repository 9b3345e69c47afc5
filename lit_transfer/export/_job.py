"""What is to be written, ready: a copy of the module in float32, on the CPU, with the pixels in front of it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_transfer.export._about import About
from lit_transfer.export._images import Images
from lit_transfer.export._quiet import quietly
from lit_transfer.export._report import ExportError
from lit_transfer.lora import merge_lora
from lit_transfer.modules import TransferModule

ANY_NUMBER = {"images": {0: torch.export.Dim("batch")}}
Run = Callable[[Tensor], Tensor]  # pixels uint8 (N, C, H, W) -> answers (N, outputs)


class Answering(nn.Module):
    """From pixels to answers: scaled and normalised as the module's preprocessing does, then `predict_step`."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: TransferModule) -> None:
        super().__init__()
        self.module = module
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(module.preprocessing, name)).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Give the answers for pixels, uint8 (N, C, H, W)."""
        answers: Any = self.module.predict_step((images.to(torch.float32) / 255 - self.mean) / self.std, 0)
        if not isinstance(answers, Tensor):
            raise ExportError(
                f"{type(self.module).__name__}.predict_step gives a {type(answers).__name__}, where a file gives one "
                "tensor: override predict_step in a subclass, or write the weights with to='safetensors'."
            )
        return answers


@dataclass(frozen=True)
class Job:
    """What a format writes, and what it is compared on.

    Attributes:
        module: In eval mode, float32, on the CPU; nobody else's.
        about: What is kept beside the weights.
        images: On which the file is compared.
        notes: What a user of the file should know; formats add to it.
    """

    module: TransferModule
    about: About
    images: Images
    notes: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels, uint8 (N, C, H, W), beside the same images as the module takes them."""
        return self.images.batches(self.module.preprocessing)

    def traced(self) -> torch.export.ExportedProgram:
        """Trace the way from pixels to answers, for batches of any size.

        Raises:
            ExportError: If torch.export cannot follow the module.
        """
        made = self.module.preprocessing
        images = torch.zeros(2, len(made.mean), made.crop, made.crop, dtype=torch.uint8)
        try:
            with torch.no_grad(), quietly():
                return torch.export.export(Answering(self.module), (images,), dynamic_shapes=ANY_NUMBER)
        except ExportError:
            raise
        except Exception as error:  # dynamo, fake tensors and the module's own code raise many kinds
            raise ExportError(
                f"torch.export cannot follow {type(self.module).__name__} on {self.module.backbone.name}: "
                f"{_first_line(error)} The weights alone can be written: to='safetensors'."
            ) from error


def private_copy(module: TransferModule) -> TransferModule:
    """Copy a module without its trainer, for inference in float32 on the CPU, adapters of LoRA merged."""
    copied = copy.deepcopy(module, {id(module._trainer): None} if module._trainer is not None else {})
    copied = copied.cpu().float().eval().requires_grad_(False)
    merge_lora(copied)
    for parameter in copied.parameters():  # files hold plain layouts
        parameter.data = parameter.data.contiguous()
    return copied


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if line.endswith(".") else f"{line}."
