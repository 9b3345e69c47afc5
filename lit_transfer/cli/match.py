"""`lit-transfer match FILE`: how a checkpoint would be loaded into a backbone; nothing is loaded.

The answer is that of `create_backbone(NAME, weights=FILE)`. Exit code 0: it would be loaded; 1: it would be refused;
2: the question is wrong.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence

from lit_transfer.cli._parsing import CommandParser
from lit_transfer.cli._tables import as_count, as_shape, make_list, make_table, show
from lit_transfer.cli._upstream import add_model_arguments, as_flags, backbone_of, model_options
from lit_transfer.weights import Entry, Plan, WeightsError, open_checkpoint, plan_weights

_MOST_ROWS = 30
_IN_TABLE = ("adapted", "missing", "mismatched", "unexpected")  # rows of the report that the table tells in full


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv`, whose first word is its name; give 0 for a complete plan, 1 for a refused one."""
    arguments = _parser().parse_args(argv[1:])
    name, plan = _plan(arguments)
    if arguments.json:
        print(json.dumps({"backbone": name, **plan.to_dict()}))
    else:
        _show(name, plan, every=arguments.all)
    return 0 if plan.complete else 1


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-transfer match", description=(__doc__ or "").replace("`", ""))
    parser.add_argument("file", help="a checkpoint: path, http(s):// or hf:// address, folder of shards")
    parser.add_argument("--backbone", metavar="NAME", help="a name of `lit-transfer backbones`; found if not given")
    add_model_arguments(parser)
    parser.add_argument("--num-classes", type=int, help="outputs of the model; as many as upstream if not given")
    parser.add_argument("--key", help="which state dict of the file, such as teacher; found if not given")
    parser.add_argument("--prefer", choices=("ema", "plain"), default="ema", help="which of several copies to take")
    parser.add_argument("--match", choices=("name", "order"), default="name", help="pair tensors by name or in order")
    parser.add_argument("--rename", nargs=2, action="append", metavar=("REGEX", "NEW"), help="edit the file's names")
    parser.add_argument("--include", nargs="+", metavar="NAME", help="globs or dotted names: only these are filled")
    parser.add_argument("--exclude", nargs="+", metavar="NAME", help="globs or dotted names: these stay as they are")
    parser.add_argument(
        "--on-mismatch", choices=("adapt", "skip", "error"), default="adapt", help="what to do with other shapes"
    )
    parser.add_argument("--min-coverage", type=float, default=1.0, help="fraction of the tensors that must be filled")
    parser.add_argument("--all", action="store_true", help="list the tensors that are loaded as they are, too")
    parser.add_argument("--json", action="store_true", help="the plan as one JSON object")
    return parser


def _plan(arguments: Namespace) -> tuple[str, Plan]:
    from lit_transfer.backbones import upstream_model

    checkpoint = open_checkpoint(arguments.file)
    name = arguments.backbone or backbone_of(checkpoint, arguments.key, "--backbone")
    options = model_options(checkpoint, arguments.in_channels, arguments.input_size)
    model, trace = upstream_model(name, num_outputs=arguments.num_classes, **options)
    try:
        plan = plan_weights(
            model,
            checkpoint,
            key=arguments.key,
            head=trace.stages[-1].modules if trace.classifier is not None else (),
            rename=dict(arguments.rename or ()),
            include=arguments.include,
            exclude=arguments.exclude,
            on_mismatch=arguments.on_mismatch,
            min_coverage=arguments.min_coverage,
            prefer=arguments.prefer,
            match=arguments.match,
        )
    except WeightsError as error:
        raise WeightsError(as_flags(str(error))) from error
    return name, plan


def _show(name: str, plan: Plan, *, every: bool) -> None:
    part = f", its part {plan.target}" if plan.target else ""
    into = ("into", f"{name}{part}, {as_count(len(plan.entries), 'tensor')}")
    rows = [into if title == "into" else (title, text) for title, text in plan.report().rows()]
    show(make_list([*(row for row in rows if row[0] not in _IN_TABLE), *_verdict(plan)]))
    told = [entry for entry in plan.entries if every or not _as_expected(entry)]
    lines: list[tuple[str, ...]] = [(e.name, as_shape(e.shape), e.action, e.source or "", e.reason) for e in told]
    lines += [("", "", "left over", source, "") for source in plan.unexpected]
    if lines:
        columns = ["tensor of the model", "shape", "action", "tensor of the file", "why"]
        show("", make_table(columns, lines if every else lines[:_MOST_ROWS]))
    if len(lines) > _MOST_ROWS and not every:
        show(f"... and {len(lines) - _MOST_ROWS} more; --all lists them")
    elif not every and plan.complete:
        show(
            "",
            "every other tensor is loaded as it is; --all lists them" if lines else "every tensor is loaded as it is",
        )


def _as_expected(entry: Entry) -> bool:
    """Whether there is nothing to tell: it is loaded as it is, or is a counter that nobody misses."""
    return (entry.action == "load" and not entry.reason) or entry.name.endswith("num_batches_tracked")


def _verdict(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "verdict", "complete: it would be loaded" if plan.complete else "refused: nothing would be loaded"
    for problem in plan.problems:
        yield "", as_flags(problem)
