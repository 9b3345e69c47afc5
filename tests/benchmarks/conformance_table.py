"""The answers of conformance.py as docs/conformance.md."""

import datetime
import importlib.metadata
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from conformance_checks import CHECKS, LARGE, MANY, NEAR
from conformance_models import is_good, names, source_of

__all__ = ["written"]

Rows = Mapping[str, Mapping[str, Any]]
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")
TITLES = {"torchvision": "torchvision: every classifier", "timm": "timm", "hf": "transformers: small configurations"}
WHAT = {
    "create": "built with random weights and a head of three classes",
    "trace": "number of stages; the features are finite and as wide as told",
    "stages": "each parameter is in exactly one stage, none is empty, there are three or more",
    "freeze": "at each boundary, in train mode: what is frozen has no gradient after a backward pass, its norm layers "
    "are in eval mode and their statistics stay, all above has a gradient; wholly frozen, the features are eval mode's",
    "maps": "`forward_stages` gives the channels and strides that are told before it runs; stages without a map named",
    "decay": "`param_groups(layer_decay=0.8)` holds each parameter once, with rates that fall by stage",
    "head": "`reset_head` gives other answers and leaves the backbone as it is",
    "4 channels": "the file of three channels goes into a backbone of four, all but the first convolutions as it was",
    "save, load": "`save_weights` and `load_weights` into one of zeros: equal bit for bit, the features too",
    "ONNX": f"exported with `dynamo=True`, onnxruntime differs by {NEAR:g} of the largest feature at most",
}
WHY = {
    "timm/crossvit_tiny_240": "its two classifiers take features of two widths, and the mean of their logits "
    "needs both",
    "timm/efficientvim_m1": "a member is named `weights`, which a Backbone uses for itself: wrap it in a module",
    "timm/hiera_tiny_224": "its tokens are in an order of their own, which no shape tells; its features are whole",
    "inception_v3": "its stem has no padding: of three places on a side one is left, where the check allows two",
    "timm/inception_v3": "as torchvision's",
    "timm/inception_v4": "as Inception-v3",
    "timm/inception_resnet_v2": "as Inception-v3",
    "timm/naflexvit_base_patch16_gap": "it takes patches, which a linear layer embeds: there is no convolution "
    "to adapt, and no map",
    "hf:hiera": "as timm's",
    "hf:vit_mae": "it masks tokens at random in eval mode too, so that it gives other features each time",
}


def written(rows: Rows) -> str:
    """Write the document."""
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    lines = [
        "# Conformance: every backbone through everything that backbones promise",
        "",
        f"Made on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} by `tests/benchmarks/conformance.py`, with "
        f"{versions}, Python {platform.python_version()}, on a CPU with one thread, in float32, on two images.",
        "",
        "Weights are random. `side` is that of the images in pixels: the smallest of 64, 96, 128, 224 at which the "
        "stages are those of the architecture's own size, else that size. "
        f"From {MANY / 1e6:.0f} M parameters on, freezing runs a backward pass at the first, the middle and the last "
        f"boundary only; above {LARGE / 1e6:.0f} M (side marked `meta`) nothing is computed: `-` is what needs values.",
        "",
        *(f"- **{column}**: {what}." for column, what in WHAT.items()),
        "",
        *_summary(rows),
        "",
        f"Asked so far: {len(rows)} of {len(names())} architectures; the script goes on where its file ends.",
    ]
    for source, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table([rows[name] for name in _asked(rows, source)])]
    told = [f"- `{name}`: {why}." for name, why in WHY.items() if name in rows]
    return "\n".join([*lines, "", "## What does not work, and why", "", *told]) + "\n"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _asked(rows: Rows, source: str) -> list[str]:
    asked = [name for name in names() if name in rows and source_of(name) == source]
    return sorted(asked)


def _summary(rows: Rows) -> Iterator[str]:
    """Yield how many architectures and families were asked, and how many of them give what each column asks."""
    yield f"| from | architectures | families | {' | '.join(CHECKS)} |"
    yield "|---|" + "---:|" * (2 + len(CHECKS))
    for source in TITLES:
        asked = [rows[name] for name in _asked(rows, source)]
        cells = [_count(row["answers"].get(column) for row in asked) for column in CHECKS]
        yield f"| {source} | {len(asked)} | {len({row['family'] for row in asked})} | {' | '.join(cells)} |"


def _count(answers: Iterable[str | None]) -> str:
    given = [answer for answer in answers if answer not in {None, "-"}]
    return f"{sum(is_good(answer) for answer in given)} of {len(given)}"


def _table(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    yield f"| architecture | family | M parameters | side | {' | '.join(CHECKS)} |"
    yield "|---|---|---:|---:|" + "---|" * len(CHECKS)
    for row in rows:
        size = f"{row.get('size') or '-'}{' meta' if row.get('meta') else ''}"
        count = f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else "-"
        cells = [_cell(row["answers"], column) for column in CHECKS]
        yield f"| `{row['name']}` | {row['family']} | {count} | {size} | {' | '.join(cells)} |"


def _cell(answers: Mapping[str, str], column: str) -> str:
    answer = answers.get(column)
    if answer is None:
        return "-" if not is_good(answers.get("create", "ok")) else "not asked"
    if is_good(answer):
        return answer
    short = re.sub(r"/\S*/", "", answer).replace("|", "/")
    return short if len(short) <= 110 else f"{short[:107]}..."
