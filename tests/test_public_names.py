"""Names that users import are stable: what is removed or renamed here is a breaking release."""

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "lit_transfer": [
        "WeightsError",
        "create_backbone",
        "emptiest_gpus",
        "freeze",
        "frozen_names",
        "list_backbones",
        "load_predictor",
        "load_weights",
        "open_checkpoint",
        "param_groups",
        "plan_weights",
        "save_weights",
        "trace_stages",
        "unfreeze",
    ],
    "lit_transfer.callbacks": [
        "EMA",
        "FeatureCaching",
        "FinetuningSchedule",
        "LoRA",
        "PhasedStopping",
        "StageNorms",
        "TolerantRestore",
        "WeightLoading",
    ],
    "lit_transfer.data": ["DigitsData", "ImageFolderData", "ResumableLoader", "TableData"],
    "lit_transfer.export": ["ExportError", "ExportReport", "export"],
    "lit_transfer.modules": ["ImageClassifier", "ImageRegressor", "MultiLabelClassifier", "TransferModule"],
    "lit_transfer.lora": ["add_lora", "merge_lora"],
    "lit_transfer.runs": ["Summary", "cross_validate", "run_seeds"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_name_is_there(module: str, name: str) -> None:
    room = importlib.import_module(module)
    assert name in room.__all__
    assert callable(getattr(room, name))


def test_the_top_level_has_no_other_names() -> None:
    room = importlib.import_module("lit_transfer")
    assert sorted(room.__all__) == PUBLIC["lit_transfer"]
    assert set(PUBLIC["lit_transfer"]) <= set(dir(room))
    with pytest.raises(AttributeError, match="no attribute 'load_weight'"):
        room.load_weight  # noqa: B018  (the access is the test)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, lit_transfer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_room_named_like_a_function_does_not_hide_it() -> None:
    code = "import lit_transfer.parameter_groups; from lit_transfer import param_groups; assert callable(param_groups)"
    subprocess.run([sys.executable, "-c", code], check=True)
