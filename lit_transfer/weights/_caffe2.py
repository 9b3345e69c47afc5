"""Names of Caffe2's blobs as detectron2 has them: `res2_0_branch2a_bn_s` is `res2.0.conv1.norm.weight`.

Source: `convert_basic_c2_names` in detectron2's checkpoint/c2_model_loading.py.
"""

import re
from collections.abc import Mapping

from lit_transfer.weights._lazy import LazyTensor

_BLOCK = re.compile(r"^res[2-5]_\d+_branch(1|2[abc])_")
_RULES = (
    (r"^pred_", "fc1000_"),
    (r"^res_conv1_", "conv1_"),
    (r"^conv1_", "stem_conv1_"),
    (r"_branch1_", "_shortcut_"),
    (r"_branch2a_", "_conv1_"),
    (r"_branch2b_", "_conv2_"),
    (r"_branch2c_", "_conv3_"),
    (r"_(?:bn|gn)_(?:s|gamma)$", ".norm.weight"),
    (r"_(?:bn|gn)_(?:b|beta)$", ".norm.bias"),
    (r"_bn_(?:rm|running_mean)$", ".norm.running_mean"),
    (r"_bn_(?:riv|running_var)$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
_MOMENTS = "_momentum"


def is_caffe2(names: Mapping[str, object]) -> bool:
    """Whether some name is that of a blob of a residual block."""
    return any(map(_BLOCK.match, names))


def detectron2_names(blobs: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors under the names of detectron2; an optimizer's (`_momentum`) keep theirs.

    If two became one name, all keep their own.
    """
    renamed = {name if name.endswith(_MOMENTS) else _renamed(name): blob for name, blob in blobs.items()}
    return renamed if len(renamed) == len(blobs) else dict(blobs)


def _renamed(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    place, dot, leaf = name.partition(".")
    return re.sub(r"_(?=\d|conv|shortcut)", ".", place) + dot + leaf
