"""A trained module as a file that others run: ONNX, torch.export, safetensors, or torchvision's own state dict."""

from lit_transfer.export._export import export
from lit_transfer.export._report import ExportError, ExportReport

__all__ = ["ExportError", "ExportReport", "export"]
