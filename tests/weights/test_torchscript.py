"""TorchScript archives, scripted and traced, are read as their modules' state dicts, and not run. CLIP's is one."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import refuses_or_is_empty
from small_network import values
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lit_transfer.weights import load_weights, open_checkpoint


class Block(nn.Module):
    """A layer with all that a module may hold: a constant, a tensor that is none of its own, two kinds of buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = 2.0
        self.plain = torch.ones(7)
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("order", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale + self.plain.sum() + self.kept + self.order + torch.tensor([1.0, 2.0, 3.0])


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.tied = self.blocks[0].layer  # type: ignore[union-attr]  # a Block
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.randn(3))
        self.names = ["a", "b"]
        self.resolution = 224

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.tied(self.norm(x) * self.weight)
        return y


class Clip(nn.Module):
    """The vision part's names of OpenAI's CLIP (clip/model.py), two blocks, beside a text part."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.visual = Visual(width)
        self.token_embedding = nn.Embedding(9, width)
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.context_length = 77

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return self.logit_scale * self.visual(images) @ self.token_embedding(text).mean(1).T


class Visual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Residual(width) for _ in range(2)))
        self.proj = nn.Parameter(torch.randn(width, width))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x))  # type: ignore[operator]  # nn.Module has no hints for it
        y: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return y


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 3, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.c_fc, self.mlp.act, self.mlp.c_proj = nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        z: Tensor = x + self.mlp(self.ln_2(x))
        return z


def save(model: nn.Module, path: Path, example: Any = None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files stay
        made = torch.jit.script(model) if example is None else torch.jit.trace(model, example)
        torch.jit.save(made, path)
    return model


@pytest.mark.parametrize("example", [None, torch.ones(2, 3)])
def test_scripted_and_traced_modules(tmp_path: Path, example: Tensor | None) -> None:
    torch.manual_seed(5)
    source = save(Nested().eval(), tmp_path / "f", example)
    found = open_checkpoint(tmp_path / "f").state_dict()
    assert not [name for name in found if "plain" in name]
    model = Nested().eval()
    report = load_weights(model, tmp_path / "f")
    assert (report.format, report.coverage, report.edit) == ("TorchScript archive", 1.0, "names as they are")
    expected = values(source)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(model).items())
    assert torch.equal(model(torch.ones(2, 3)), source(torch.ones(2, 3)))


def test_clip_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(6)
    source = Clip().eval()
    with torch.inference_mode():
        save(source.half(), tmp_path / "ViT-B-32.pt", (torch.ones(1, 3, 32, 32).half(), torch.ones(1, 2).long()))
    model = VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=0, pre_norm=True)
    report = load_weights(model, tmp_path / "ViT-B-32.pt")
    assert (report.prefix, report.coverage) == ("visual", 1.0)
    assert "CLIP to timm" in report.edit
    theirs = source.visual.transformer.resblocks[1].attn.in_proj_weight  # type: ignore[index, union-attr]  # as above
    assert model.blocks[1].attn.qkv.weight.dtype == torch.float32
    assert torch.equal(model.blocks[1].attn.qkv.weight, theirs.float())


def test_code_that_says_nothing_leaves_all_tensors(tmp_path: Path) -> None:
    save(Nested(), tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as old, zipfile.ZipFile(tmp_path / "f", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, b"class (((\n" * 9 if info.filename.endswith(".py") else old.read(info))
    assert "stem.plain" in open_checkpoint(tmp_path / "f").state_dict()


@pytest.mark.usefixtures("limits")
def test_damaged_code(tmp_path: Path) -> None:
    save(Nested(), tmp_path / "good")
    data = (tmp_path / "good").read_bytes()
    with zipfile.ZipFile(tmp_path / "good") as archive:
        code = next(info for info in archive.infolist() if info.filename.endswith(".py"))
    for at in (code.header_offset, code.header_offset + 200, archive.start_dir + 60):
        (tmp_path / "f").write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
        refuses_or_is_empty(tmp_path / "f")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("a/data.pkl", b"}.")
        new.writestr("a/code/__torch__.py", b"class A(Module):\n" * 2**23)
    refuses_or_is_empty(tmp_path / "bomb")
