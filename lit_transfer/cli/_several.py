"""`fit --folds N` and `fit --seeds N`: the same command once for each fold or seed, and the table of all."""

import copy
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lit_transfer.cli._tables import as_count, make_table, show
from lit_transfer.runs import Summary
from lit_transfer.runs._each import as_seeds, going_on, with_fold, with_seed
from lit_transfer.runs._ledger import FILE, Ledger
from lit_transfer.runs._settle import OUT_OF_FOLD, Measured, check_single, settle
from lit_transfer.runs._summary import summarise

if TYPE_CHECKING:
    from lit_transfer.cli.training import TransferCLI

# Not of the runs: whether they go on, how the answer is printed, and which of them there are.
_ASIDE = ("config", "resume", "json", "seeds", "fold", "seed_everything")


def add_several_arguments(parser: LightningArgumentParser) -> None:
    """Add what asks for several runs."""
    folds = "cross-validate: fit once for each of this many folds of the train and val images (docs/several_runs.md)"
    parser.add_argument("--folds", type=PositiveInt | None, help=folds)
    parser.add_argument("--fold", type=NonNegativeInt | None, help="with --folds: only this one, from 0, as one run")
    seeds = "fit once for each seed, on the same split: how many, from 0, or a list such as [1, 2, 3]"
    parser.add_argument("--seeds", type=PositiveInt | list[int] | None, help=seeds)
    measured = "weights that several runs are measured with; best ones were chosen on what they are measured on"
    parser.add_argument("--measured", type=Measured, default="last", help=measured)
    parser.add_argument("--json", action="store_true", help="the table of several runs as one JSON object")


def check_several(config: Namespace, command: str) -> bool:
    """Tell whether several runs are asked for.

    Raises:
        ValueError: If the options contradict each other, or cannot go with the rest.
    """
    folds, fold, seeds = (config.get(name) for name in ("folds", "fold", "seeds"))
    if fold is not None and (folds is None or fold >= folds):
        raise ValueError(f"--fold={fold} needs --folds=N with a larger N; folds are numbered from 0.")
    if folds is not None and folds < 2:
        raise ValueError(f"--folds={folds}: cross-validation needs at least two.")
    if folds is not None and seeds is not None:
        raise ValueError("--folds and --seeds go apart: give one, and --data.seed=N for another cut into folds.")
    several = seeds is not None or (folds is not None and fold is None)
    if (several and command != "fit") or (folds is not None and command == "test"):
        raise ValueError(f"--folds and --seeds are for fit; {command} measures one checkpoint: leave them out.")
    if "seeds" in config and config.get("json") and not several:  # probe and others have a --json of their own
        raise ValueError("--json is for the table of --folds or --seeds: give one of them, or leave it out.")
    if several:
        as_seeds(seeds if seeds is not None else 1)
        _check_rest(config)
    return several


def _check_rest(config: Namespace) -> None:
    if config.get("ckpt_path") is not None:
        raise ValueError("--ckpt_path is of one run; with --folds or --seeds give --resume auto, or --model.weights.")
    if config.trainer.get("fast_dev_run"):
        raise ValueError("--trainer.fast_dev_run leaves nothing to compare: try one run, without --folds or --seeds.")
    for callback in _listed(config.trainer.get("callbacks")):
        if isinstance(callback, Namespace) and callback.get("init_args") and callback.init_args.get("dirpath"):
            raise ValueError("a ModelCheckpoint with a dirpath of its own would mix the runs: leave dirpath out.")


def run_several(cli: "TransferCLI", resume: bool) -> None:
    """Fit once for each fold or seed, each in a folder of its own, and print what they reached together."""
    config = cli.config["fit"]
    ledger = _open_ledger(config, resume)
    quiet = redirect_stdout(sys.stderr) if config.json else nullcontext()
    with quiet, going_on():
        _tell_beforehand(ledger, config)
        for number in ledger.missing:
            _run_one(cli, config, ledger, number)
    summary = summarise(ledger)
    print(json.dumps(summary.to_dict())) if config.json else print_summary(summary, config.measured)


def _run_one(cli: "TransferCLI", config: Namespace, ledger: Ledger, number: int) -> None:
    own = cli.config["fit"] = copy.deepcopy(config)
    if ledger.kind == "folds":
        own.fold = number  # so that the saved config runs this one again
    else:
        own.seeds, own.seed_everything = [number], number
    own.json = False
    cli.place = ledger.place(number)
    cli._set_seed()
    cli.build()
    check_single(cli.trainer)
    cli.fit_one()
    settle(cli.trainer, cli.model, cli.datamodule, ledger, number, config.measured)
    reached = ", ".join(f"{name} {value:.4f}" for name, value in list(ledger.done[number].items())[:3])
    print(f"{ledger.name(number)} is done ({len(ledger.done)} of {len(ledger.numbers)}): {reached}")


def set_data(datamodule: Any, config: Namespace) -> None:
    """Give the data its fold, or its seed, as the command line asks."""
    if config.get("folds") is not None:
        with_fold(datamodule, config.fold, config.folds)
    if config.get("seeds") is not None:
        with_seed(datamodule, config.seed_everything)


def put_into(place: Path, loggers: Sequence[Logger]) -> dict[str, Any]:
    """Let the loggers that have folders write into the folder of a run; give the Trainer's arguments for the rest."""
    for logger in loggers:
        if hasattr(logger, "log_dir"):  # CSV, TensorBoard
            logger._version = f"{place.parent.name}/{place.name}"  # type: ignore[attr-defined]  # both have it
    return {"default_root_dir": str(place)}


def _open_ledger(config: Namespace, resume: bool) -> Ledger:
    kind, numbers = ("folds", range(config.folds)) if config.folds else ("seeds", as_seeds(config.seeds))
    settings = json.loads(json.dumps(config.as_dict(), default=str))
    settings = {name: value for name, value in settings.items() if name not in _ASIDE}
    if kind == "folds":
        settings["seed_everything"] = config.seed_everything
    root = _root(config.trainer)
    found = {int(path.name[8:]): path for path in root.glob("version_*") if path.name[8:].isdigit()}
    for _, path in sorted(found.items(), reverse=resume):
        if resume and (path / FILE).is_file() and json.loads((path / FILE).read_text())["kind"] == kind:
            return Ledger(path, kind, numbers, settings)  # type: ignore[arg-type]  # one of the two
    return Ledger(root / f"version_{max(found, default=-1) + 1}", kind, numbers, settings)  # type: ignore[arg-type]


def _root(trainer: Namespace) -> Path:
    """Give the folder in which loggers number their versions."""
    for logger in _listed(trainer.get("logger")):
        arguments = logger.get("init_args") if isinstance(logger, Namespace) else None
        if arguments and arguments.get("save_dir") and "version" in arguments:
            return Path(arguments.save_dir, arguments.get("name") or "")
    return Path(trainer.get("default_root_dir") or "runs")


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _tell_beforehand(ledger: Ledger, config: Namespace) -> None:
    done = f"; {len(ledger.done)} of them are done" if ledger.done else ""
    length = f" of {as_count(config.trainer.max_epochs, 'epoch')}" if config.trainer.get("max_epochs") else ""
    print(f"{as_count(len(ledger.numbers), 'run')}{length}, one after the other, in {ledger.folder}{done}")


def print_summary(summary: Summary, measured: Measured) -> None:
    """Print the table of all runs, what its numbers are, and where the rest lies."""
    heading, *rows = summary.rows()
    weights = "of the last epoch" if measured == "last" else "of the best checkpoint, chosen on the same images"
    told = [f"Measured are the weights {weights}; ± is the sample standard deviation over {len(summary.runs)} runs."]
    if summary.pooled:
        told.append("all answers: measured once over the out-of-fold answers for every image, not a mean of folds.")
    show("", make_table(heading, rows, numbers=heading[1:]), "", *told)
    if summary.kind == "folds":
        print(f"{'out of fold':17} {summary.folder / OUT_OF_FOLD}")
    first = next(iter(summary.runs))
    print(f"{'checkpoints':17} {summary.folder / first / 'checkpoints'} and so on")
