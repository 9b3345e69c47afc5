import subprocess
import sys

import pytest
import timm

from lit_transfer.backbones import BackboneInfo, describe_backbones, list_backbones


def test_names_are_found_by_pattern() -> None:
    assert list_backbones("resnet*") == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert list_backbones("nothing*") == []
    assert list_backbones("timm/resnet18*") == ["timm/resnet18", "timm/resnet18d"]
    assert len(list_backbones("timm/*")) == len(timm.list_models())


def test_what_is_known_is_told_without_building() -> None:
    weights = ("IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1")
    assert describe_backbones("vit_h_14") == [BackboneInfo("vit_h_14", 633470440, 518, weights)]
    [resnet] = describe_backbones("resnet50")
    assert resnet.weights == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    [swin] = describe_backbones("timm/swin_s3_tiny_224")
    assert (swin.parameters, swin.input_size, swin.weights) == (None, 224, ("ms_in1k",))
    assert len(describe_backbones()) == 80


def test_timm_is_imported_only_where_it_is_asked_for() -> None:
    code = "from lit_transfer import list_backbones; list_backbones(); import sys; print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-transfer\[timm\]'"):
        list_backbones("timm/*")
