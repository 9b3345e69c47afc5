"""`lit-transfer backbones [PATTERN]`: which backbones there are, how large, and with which pretrained weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from lit_transfer.backbones import describe_backbones, list_backbones, nothing_cached
from lit_transfer.cli._parsing import CommandParser, nearest


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name.

    Raises:
        ValueError: If the pattern matches no backbone; the nearest names are told, or where there are others.
    """
    parser = CommandParser(prog="lit-transfer backbones", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*', 'timm/convnext*', or 'hf/*'")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args(argv[1:])
    found = describe_backbones(arguments.pattern)
    if not found:
        if arguments.pattern.startswith("hf/"):
            raise ValueError(nothing_cached(arguments.pattern))
        known = list_backbones("timm/*" if arguments.pattern.startswith("timm/") else "*")
        raise ValueError(f"No backbone matches {arguments.pattern!r}.{nearest(arguments.pattern, known)}")
    if arguments.json:
        for info in found:
            print(json.dumps(asdict(info)))
        return
    width = max(len(info.name) for info in found)
    print(f"{'name':{width}}  parameters  input  weights (the first is DEFAULT)")
    for info in found:
        parameters = "-" if info.parameters is None else f"{info.parameters / 1e6:.1f} M"
        print(f"{info.name:{width}}  {parameters:>10}  {info.input_size:>5}  {', '.join(info.weights) or '-'}")
