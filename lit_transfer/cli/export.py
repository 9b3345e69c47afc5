"""`lit-transfer export CKPT --to FORMAT`: a checkpoint as a file that others run, compared with it before it is there.

Formats: onnx (onnxruntime, any language), torch_export (torch without this library), safetensors (weights to build
the module again), torchvision (a state dict for torchvision's own model).
"""

import json
from collections.abc import Sequence

from lit_transfer.cli._parsing import CommandParser
from lit_transfer.cli._tables import make_list, show


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    arguments = _parser().parse_args(argv[1:])
    from lit_transfer.export import export

    options = {"to": arguments.to, "images": arguments.images, "force": arguments.force}
    report = export(arguments.checkpoint, arguments.output, **options)
    if arguments.json:
        print(json.dumps(report.to_dict()))
    else:
        show(make_list(report.rows()))


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer export", description=(__doc__ or "").replace("`", ""))
    parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt file that lit-transfer fit wrote")
    formats = ("onnx", "torch_export", "safetensors", "torchvision")
    parser.add_argument("--to", choices=formats, required=True, help="the format")
    parser.add_argument("-o", "--output", metavar="OUT", help="file or folder; beside CKPT if not given")
    parser.add_argument(
        "--images", nargs="+", metavar="PLACE", help="images and folders to compare on; else the run's own data"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser
