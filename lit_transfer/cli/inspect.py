"""`lit-transfer inspect FILE`: what is in a checkpoint. Nothing in it is run, and no tensor is read."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lit_transfer.cli._parsing import CommandParser
from lit_transfer.cli._tables import as_count, as_shape, as_size, make_list, make_table, safe, show
from lit_transfer.weights import Checkpoint, describe, main_state_dict, open_checkpoint, torchvision_family

# Settings of an optimizer's group that have a column, or follow from one.
_IN_COLUMNS = ("params", "name", "stage", "lr", "initial_lr", "rate", "weight_decay")
_NAME = 40  # longest name of an entry
_GUESSED = 4  # so many state dicts, the largest, are compared with torchvision's models


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    checkpoint = open_checkpoint(arguments.file)
    told = describe(checkpoint, depth=arguments.depth)
    _guess_backbones(checkpoint, told["state_dicts"])
    if arguments.tensors or arguments.key is not None:
        told["key"], told["tensors"] = _tensors(checkpoint, arguments.key)
    if arguments.json:
        print(json.dumps(told))
        return
    if "tensors" in told:
        show(make_table(["name", "shape", "dtype", "device"], (list(row.values()) for row in told["tensors"])))
    else:
        _show(told)


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer inspect", description=__doc__)
    parser.add_argument("file", help="a checkpoint: path, http(s):// or hf:// address, folder of shards")
    parser.add_argument("--depth", type=int, default=2, help="levels of the contents to show (default 2)")
    parser.add_argument("--tensors", action="store_true", help="list each tensor of the network instead")
    parser.add_argument("--key", help="list each tensor of the state dict at this place instead")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _guess_backbones(checkpoint: Checkpoint, entries: list[dict[str, Any]]) -> None:
    """Add to each entry which of torchvision's models the state dict fills."""
    largest = sorted(entries, key=lambda entry: -entry["parameters"])[:_GUESSED]
    for entry in entries:
        found = checkpoint.state_dict(entry["key"])
        entry["backbone"] = None
        if entry in largest and torchvision_family(found):
            from lit_transfer.backbones import guess_backbone  # torchvision takes a second to import

            entry["backbone"] = guess_backbone(found)


def _tensors(checkpoint: Checkpoint, key: str | None) -> tuple[str, list[dict[str, str]]]:
    found, _ = main_state_dict(checkpoint, key)
    return found.key, [
        {
            "name": name,
            "shape": as_shape(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": tensor.location,
        }
        for name, tensor in found.items()
    ]


def _show(told: dict[str, Any]) -> None:
    show(make_list(_summary(told)))
    if told["state_dicts"]:
        columns = ["state dict", "tensors", "parameters", "size", "dtypes", "devices", "prefix", "looks like"]
        show("", make_table(columns, map(_row, told["state_dicts"]), numbers=columns[1:4]))
    for entry in told["state_dicts"]:
        if entry["unread"]:
            name, why = next(iter(entry["unread"].items()))
            show(safe(f"{as_count(len(entry['unread']), 'tensor')} of {entry['key']!r} cannot be read: {name}: {why}"))
    if groups := told["optimizer_groups"]:
        columns = ["optimizer group", "tensors", "lr", "weight decay", "its own settings"]
        shared = {name: value for name, value in groups[0].items() if all(group.get(name) == value for group in groups)}
        rows = [_group(number, group, shared) for number, group in enumerate(groups)]
        show("", make_table(columns, rows, numbers=columns[1:4]))
        if settings := _settings(shared):
            show(f"all of them: {settings}")
    if isinstance(told["contents"], dict) and told["contents"]:
        show("", "contents", make_list(_lines(told["contents"], "  ")))
    if told["would_import"]:
        show("", *_foreign(told))


def _summary(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", told["source"]
    yield "format", told["format"] + (f", {as_size(told['bytes'])}" if told["bytes"] is not None else "")
    progress = [
        f"{name} {told[key]}" for name, key in (("epoch", "epoch"), ("step", "global_step")) if told[key] is not None
    ]
    if progress:
        yield "progress", ", ".join(progress)
    if told["class_names"]:
        yield "classes", _few(told["class_names"], 12)
    yield from ((name, text) for name, text in told["metadata"].items() if name != "class_names")
    if not isinstance(told["contents"], dict):
        yield "holds", str(told["contents"])
    if not told["state_dicts"]:
        yield "state dicts", "none: it holds no tensors under names"


def _row(entry: dict[str, Any]) -> list[str]:
    key = entry["key"] or "(top level)"
    return [
        f"{key}, a module" if entry["kind"] == "module" else key,
        f"{entry['tensors']:,}",
        f"{entry['parameters']:,}",
        as_size(entry["bytes"]),
        ", ".join(entry["dtypes"]),
        ", ".join(entry["devices"]),
        entry["prefix"],
        entry["backbone"] or entry["looks_like"],
    ]


def _group(number: int, group: dict[str, Any], shared: dict[str, Any]) -> list[str]:
    own = {name: value for name, value in group.items() if name not in shared}
    rates = (_plain(group.get(name, "")) for name in ("lr", "weight_decay"))
    return [str(group.get("name", number)), f"{group['params']:,}", *rates, _settings(own)]


def _settings(group: dict[str, Any]) -> str:
    shown = {name: value for name, value in group.items() if name not in _IN_COLUMNS and value}
    return ", ".join(f"{name} {_plain(value)}" for name, value in shown.items())


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(contents: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for long, value in contents.items():
        name = long if len(long) <= _NAME else f"{long[: _NAME - 3]}..."  # Lightning's callbacks have 130 characters
        if isinstance(value, dict):
            yield f"{indent}{name}", "" if value else "empty"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}", _plain(value)


def _foreign(told: dict[str, Any]) -> Iterator[str]:
    """What `torch.load(weights_only=False)` would have imported and called."""
    own = [name for name in told["would_import"] if name.startswith("torch.nn.modules.")]
    yield "a full unpickle would import (nothing was imported or run here):"
    if own:
        yield f"  torch.nn: {_few(sorted({name.rpartition('.')[2] for name in own}), 20)}"
    yield from (f"  {safe(name)}" for name in told["would_import"] if name not in own)
    if told["would_call"]:
        yield "and call:"
    yield from (f"  {safe(call)}" for call in told["would_call"])


def _few(names: Sequence[str], limit: int) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
