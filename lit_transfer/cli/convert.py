"""`lit-transfer convert IN OUT`: the weights of a checkpoint in another format, under other names, or slimmed.

OUT is safetensors or a torch file, as its suffix says, and holds a plain state dict and nothing else.
"""

import json
import math
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_transfer._entry import ENTRY
from lit_transfer._selection import is_lora
from lit_transfer.cli._parsing import CommandParser
from lit_transfer.cli._tables import as_count, as_size, safe, show
from lit_transfer.cli._upstream import add_model_arguments, as_flags, backbone_of, model_options, saved_by_us
from lit_transfer.weights import (
    Checkpoint,
    Entry,
    Plan,
    WeightsError,
    describe,
    main_state_dict,
    open_checkpoint,
    plan_weights,
    save_weights,
)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    target = Path(arguments.target)
    checkpoint = open_checkpoint(arguments.source)
    _check_target(arguments.source, target, arguments.force)
    try:
        state, told = _upstream(checkpoint, arguments) if arguments.to else _as_it_is(checkpoint, arguments)
    except WeightsError as error:
        raise WeightsError(as_flags(str(error))) from error
    prefix, strip, dtype = arguments.prefix, arguments.strip, _DTYPES.get(arguments.dtype)
    about = _metadata(checkpoint, told)
    if arguments.to or prefix or strip or arguments.include or arguments.exclude:
        about.pop(ENTRY, None)  # a module is built again from all of its own names
    written = save_weights(
        state, target, prefix=prefix, strip=strip, dtype=dtype, metadata=about, shards=arguments.shards
    )
    files = _files(written)
    size = sum(file.stat().st_size for file in files)
    if arguments.json:
        found = {"path": str(written), "files": len(files), "tensors": len(state), "bytes": size, "from": told}
        print(json.dumps(found))
    else:
        shards = f" in {len(files)} files" if len(files) > 1 else ""
        show(safe(f"{written}: {as_count(len(state), 'tensor')}, {as_size(size)}{shards}, from {told}"))


def _files(written: Path) -> list[Path]:
    """The files that hold the tensors: one, or those that an index names."""
    if not written.name.endswith(".index.json"):
        return [written]
    return [written.with_name(name) for name in sorted(set(json.loads(written.read_text())["weight_map"].values()))]


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer convert", description=(__doc__ or "").replace("`", ""))
    parser.add_argument(
        "source", metavar="IN", help="a checkpoint: path, http(s):// or hf:// address, folder of shards"
    )
    parser.add_argument("target", metavar="OUT", help=".safetensors, or .pth, .pt, .bin, .ckpt for a torch file")
    parser.add_argument("--key", help="which state dict of the file, such as state_dict_ema; found if not given")
    parser.add_argument("--prefer", choices=("ema", "plain"), default="ema", help="which of several copies to take")
    parser.add_argument("--include", nargs="+", metavar="NAME", help="globs or dotted names: only these are written")
    parser.add_argument("--exclude", nargs="+", metavar="NAME", help="globs or dotted names: these are left out")
    parser.add_argument("--strip", metavar="NAME", help="take this from the front of all names: module, module.module")
    parser.add_argument("--prefix", metavar="NAME", help="put this in front of all names: module")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), help="cast floating-point tensors")
    parser.add_argument(
        "--shards", metavar="SIZE", help="largest size of a file, such as 2GB; an index if it is passed"
    )
    parser.add_argument(
        "--to",
        metavar="NAME",
        help="write what upstream's own model loads with strict=True, classifier included; NAME is resnet18, "
        "timm/convnext_tiny and so on, or torchvision, timm or upstream for the one that the checkpoint tells of",
    )
    add_model_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _check_target(source: str, target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} for {target.name}")
    for there in filter(Path.exists, (target, target.with_name(f"{target.name}.index.json"))):
        if Path(source).exists() and there.samefile(source):
            raise ValueError(f"OUT is IN ({there}): what is not weights would be lost; give another name")
        if not force:
            raise FileExistsError(f"{there} is there already: --force replaces it")


def _as_it_is(checkpoint: Checkpoint, arguments: Namespace) -> tuple[Mapping[str, Any], str]:
    """The state dict under its own names, and where it comes from in words."""
    found, note = main_state_dict(checkpoint, arguments.key, arguments.prefer)
    state = found.selected(arguments.include, arguments.exclude)
    strip = arguments.strip
    outside = [name for name in state if strip is not None and not name.startswith(f"{strip}.")]
    if outside:
        more = "" if len(outside) == 1 else f" and {len(outside) - 1} more"
        raise WeightsError(
            f"--strip {strip}: {outside[0]}{more} of {len(state)} names do not begin with `{strip}.`; "
            f"--include {strip} leaves them out"
        )
    place = f"{found.key!r} of {checkpoint.name}" if found.key else checkpoint.name
    return state, f"{place} ({note})" if note else place


def _upstream(checkpoint: Checkpoint, arguments: Namespace) -> tuple[Mapping[str, Any], str]:
    """The state dict of the upstream model with the file's values, and where they come from in words."""
    if arguments.strip or arguments.include or arguments.exclude:
        raise ValueError("--to finds the names by itself: it does not go with --strip, --include or --exclude")
    if any(map(is_lora, main_state_dict(checkpoint, arguments.key)[0])):
        raise ValueError(
            f"--to {arguments.to}: {checkpoint.name} holds adapters beside its weights. Merge them first: "
            "merge_lora(module) of lit_transfer.lora, then save_weights(module.backbone, FILE)"
        )
    name = _named(checkpoint, arguments.to, arguments.key)
    plan = _plan(checkpoint, name, arguments)
    state: OrderedDict[str, Any] = OrderedDict((entry.name, _unchanged(entry, plan)) for entry in plan.entries)
    state._metadata = plan.metadata  # type: ignore[attr-defined]  # where torch keeps the modules' versions
    place = f"{plan.key!r} of {checkpoint.name}" if plan.key else checkpoint.name
    notes = "".join(f"; {note}" for note in (*plan.notes, *_other_answers(plan)))
    return state, f"{place} as {name} ({plan.edit}{notes})"


def _named(checkpoint: Checkpoint, to: str, key: str | None) -> str:
    """The backbone that `--to` means: upstream, torchvision and timm leave it to the file to name one."""
    if to not in ("upstream", "torchvision", "timm"):
        return to
    name = backbone_of(checkpoint, key, "--to")
    if to == ("torchvision" if name.startswith("timm/") else "timm"):
        raise ValueError(f"--to {to}: {checkpoint.name} holds a {name}: write --to upstream, or the name of another")
    return name


def _other_answers(plan: Plan) -> Iterator[str]:
    for entry in plan.of("adapt"):
        if entry.change is not None and len(entry.shape) == 4:
            yield (
                f"{entry.name} is a 1x1 convolution upstream: where a ReLU lies between it and the pooling, as in "
                "SqueezeNet, the answers differ from those of a linear head"
            )


def _plan(checkpoint: Checkpoint, name: str, arguments: Namespace) -> Plan:
    """A complete plan for the upstream model with as many outputs as the file's classifier has."""
    from lit_transfer.backbones import upstream_model

    options = model_options(checkpoint, arguments.in_channels, arguments.input_size)
    model, trace = upstream_model(name, **options)
    if trace.classifier is None:
        raise ValueError(f"{name} has no classifier: give the backbone's names with --include and --strip")
    rename = _head_names(checkpoint, trace.classifier)
    choice = {"key": arguments.key, "prefer": arguments.prefer, "rename": rename}
    plan = plan_weights(model, checkpoint, head=trace.stages[-1].modules, **choice)
    output = next((entry for entry in plan.entries if entry.name == f"{trace.classifier}.weight"), None)
    if output is not None and output.source_shape and output.source_shape[0] != output.shape[0]:
        model, _ = upstream_model(name, num_outputs=output.source_shape[0], **options)
        plan = plan_weights(model, checkpoint, head=(), **choice)
    if plan.problems:
        reasons = "; ".join(
            re.sub(r"; [^;]*(accepts that|leaves them as they are)", "", text) for text in plan.problems
        )
        raise WeightsError(f"{checkpoint.name} does not fill {name}: {reasons}")
    return plan


def _head_names(checkpoint: Checkpoint, classifier: str) -> dict[str, str]:
    """How the head of one of our modules is renamed, which is one linear layer, after a dropout or not."""
    if not saved_by_us(checkpoint)[0]:
        return {}
    names = [name for name in main_state_dict(checkpoint)[0] if name.startswith("head.") and name.endswith(".weight")]
    if len(names) != 1:
        raise WeightsError(
            f"the head of {checkpoint.name} has {len(names)} layers, where upstream has one: "
            "--include backbone --strip backbone writes the backbone alone"
        )
    return {rf"^{names[0].removesuffix('.weight')}\.".replace("head.", r"head\."): f"backbone.{classifier}."}


def _unchanged(entry: Entry, plan: Plan) -> Any:
    """The tensor of the file; a linear layer and a 1x1 convolution differ in their shape alone."""
    tensor, change = entry.tensor, entry.change
    if entry.action == "load" and tensor is not None:
        return tensor
    if tensor is not None and change is not None and math.prod(tensor.shape) == math.prod(entry.shape):
        return change.run(tensor.read())
    if entry.name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    why = entry.reason or "it is not in the file"
    raise WeightsError(
        f"{plan.source} is not written as it is: {entry.name} would not keep its values ({why}); "
        "--in-channels and --input-size say how the model was built"
    )


def _metadata(checkpoint: Checkpoint, told: str) -> dict[str, str]:
    """What is kept beside the tensors: the old text, class names, preprocessing and where the weights come from."""
    kept = dict(checkpoint.metadata)
    if names := describe(checkpoint, depth=0)["class_names"]:
        kept["class_names"] = json.dumps(names)
    if "preprocessing" in (own := saved_by_us(checkpoint)[0]):
        kept["preprocessing"] = json.dumps(own["preprocessing"])
    return {**kept, "provenance": f"lit-transfer convert: {told}"}
