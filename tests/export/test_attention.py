"""Attention spelled out gives what torch's fused one gives: float32, one sample or more, CPU."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transfer.export import export
from lit_transfer.export._attention import SpelledOut
from lit_transfer.modules import ImageClassifier


class Windows(nn.Module):
    """Attention within the quarters of an image, with five axes and a bias for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 24)
        self.bias, self.fc = nn.Parameter(torch.randn(16, 16)), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).unflatten(3, (2, 4)).unflatten(2, (2, 4))  # (N, 8, 2, 4, 2, 4)
        tokens = maps.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16, 8)
        query, key, value = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        answer: Tensor = self.fc(found.transpose(2, 3).reshape(-1, 64, 8).mean(1))
        return answer


@settings(deadline=None, max_examples=60)
@given(
    axes=st.lists(st.integers(1, 3), max_size=3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    mask=st.sampled_from([None, "added", "taking part"]),
    scale=st.sampled_from([None, 0.3]),
    causal=st.booleans(),
)
def test_it_is_what_torch_computes(
    axes: list[int], sizes: tuple[int, ...], mask: str | None, scale: float | None, causal: bool
) -> None:
    torch.manual_seed(0)
    places, seen, width, out = sizes
    query, key, value = (torch.randn(*axes, n, w) for n, w in ((places, width), (seen, width), (seen, out)))
    given_mask = None if mask is None or causal else torch.randn(places, seen)
    if given_mask is not None and mask == "taking part":
        given_mask = (given_mask > 0).index_fill(1, torch.tensor(0), True)
    options = {"attn_mask": given_mask, "scale": scale, "is_causal": causal}
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with SpelledOut():
        found = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_onnx_of_attention_in_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(Windows(), weights=None, num_classes=2, input_size=32).eval()
    report = export(module, tmp_path / "net.onnx")
    assert report.comparison.difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": torch.zeros(3, 3, 32, 32, dtype=torch.uint8).numpy()})[0].shape == (3, 2)


def test_onnx_of_swin_of_transformers(tmp_path: Path) -> None:
    """Its attention in windows has a bias for positions, which torch.onnx does not take apart."""
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    backbone = transformers.SwinModel(transformers.SwinConfig(patch_size=2, **sizes))
    module = ImageClassifier(backbone, weights=None, num_classes=2).eval()
    assert export(module, tmp_path / "net.onnx").comparison.difference < 1e-4
