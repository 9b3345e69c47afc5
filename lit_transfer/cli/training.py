"""`lit-transfer fit | validate | test`: LightningCLI with our classes as defaults, and a report at the end."""

import importlib
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

# Imported, so that the command line knows their short names (--model ImageClassifier).
from lit_transfer import callbacks as callbacks
from lit_transfer import data as data
from lit_transfer import modules as modules
from lit_transfer.callbacks import EMA, PhasedStopping, TolerantRestore
from lit_transfer.cli._errors import in_words
from lit_transfer.cli._gpus import trainer_devices
from lit_transfer.cli._noise import quiet_lightning
from lit_transfer.cli._parsing import each_of
from lit_transfer.cli._refused import nothing_half_written
from lit_transfer.cli._report import draw_report, print_report
from lit_transfer.cli._resume import find_checkpoint, keep_log
from lit_transfer.cli._several import add_several_arguments, check_several, put_into, run_several, set_data
from lit_transfer.modules import read_saved
from lit_transfer.runs._each import newest_checkpoint

_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}},
    "enable_model_summary": False,  # the report of stages says more
}


class TransferCLI(LightningCLI):
    """LightningCLI for `fit`, `validate` and `test`, whose model may come from the checkpoint alone.

    Attributes:
        place: The folder of the run, if it is one of several.
    """

    place: Path | None = None
    subcommand: str

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out `predict`, which needs no Trainer."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the image classifier and the folder of images the defaults, and add what is no class's argument."""
        parser.add_argument("--gpus", type=PositiveInt | None, help="Train on this many GPUs: the emptiest ones.")
        resume = (
            "auto: fit goes on from the newest whole checkpoint of the newest run in the log's folder, if there is one."
        )
        parser.add_argument("--resume", type=Literal["auto"] | None, help=resume)
        if "fit" in self.subcommands():
            add_several_arguments(parser)
        ema = "validate and keep an average of the weights that forgets with this rate, e.g. 0.999 (callbacks.EMA)"
        parser.add_argument("--ema", type=float | None, help=ema)
        patience = "stop after this many validations without a better value of the model's monitor, in the last phase"
        parser.add_argument("--patience", type=int | None, help=patience)
        parser.set_defaults(
            {
                "model": {"class_path": "lit_transfer.modules.ImageClassifier"},
                "data": {"class_path": "lit_transfer.data.ImageFolderData"},
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Let the checkpoint's hyperparameters be the model's defaults, so that files and flags win over them."""
        subparser = self._subcommand_parsers[args[0]]
        for key, room in (("model", modules), ("data", data)):
            if chosen := _chosen_class(args, key, room):
                subparser.set_defaults({key: {"class_path": chosen}})
        if saved := _saved_model(args, subparser.get_default("model")["class_path"]):
            subparser.set_defaults({"model": saved})
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(in_words(str(error), self._vocabulary(args[0]))) from None
        chosen = self.config[args[0]]
        # A config file that is saved with the run must start one of its own.
        self._resume, chosen["resume"] = chosen.get("resume") is not None, None
        if self._resume and (args[0] != "fit" or chosen.get("ckpt_path") is not None):
            raise ValueError("--resume auto chooses what fit goes on from: leave it out, or --ckpt_path, or use fit.")
        self._several = check_several(chosen, args[0])
        for flag in ("ema", "patience"):
            if chosen.get(flag) is not None and args[0] not in ("fit", "schedule"):
                raise ValueError(f"--{flag} is about training: leave it out, or use fit.")

    def _vocabulary(self, command: str) -> set[str]:
        """Collect the names that a user may have meant: options, arguments of our classes, and the classes."""
        words = {action.dest for action in self._subcommand_parsers[command]._actions}
        for room in (modules, data, callbacks):
            for name in room.__all__:
                words |= {name, *inspect.signature(getattr(room, name)).parameters}
        for optimizer in vars(torch.optim).values():
            words |= {optimizer.__name__} if isinstance(optimizer, type) else set()
        return words

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning lets the checkpoint win over the flags here, and reads it without any of our care."""

    def instantiate_classes(self) -> None:
        """Build module, data and trainer; for several runs that is done for each of them."""
        if not self._several:
            self.build()

    def build(self) -> None:
        """Build module, data and trainer as the config says by now."""
        super().instantiate_classes()
        set_data(self.datamodule, self.config[self.subcommand])

    def _run_subcommand(self, subcommand: str) -> None:
        if self._several:
            run_several(self, self._resume)
        else:
            super()._run_subcommand(subcommand)

    def fit_one(self) -> None:
        """Fit as one of several runs."""
        super()._run_subcommand("fit")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep the best checkpoint by the model's own metric, and take any file as one, unless asked otherwise."""
        given = self._get(self.config_init, "trainer")
        wanted = given.get("enable_checkpointing") is not False and not given.get("fast_dev_run")
        callbacks = each_of(given.get("callbacks"), Callback)
        if not any(isinstance(c, TolerantRestore) for c in callbacks):
            callbacks.append(TolerantRestore())
        if self.subcommand == "fit":
            callbacks += self._by_flag(callbacks)
        if self.subcommand == "fit" and wanted and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            monitor, mode = getattr(self.model, "monitor", ("val_loss", "min"))
            # Two of them: the one for the best writes its `last` only after an epoch that was the best.
            callbacks.append(ModelCheckpoint(monitor=monitor, mode=mode, filename="best"))
            callbacks.append(ModelCheckpoint(filename="last", enable_version_counter=False))
        kwargs["callbacks"] = callbacks
        kwargs |= trainer_devices(self._get(self.config_init, "gpus"), given)
        loggers = each_of(given.get("logger"), Logger)  # type: ignore[type-abstract]  # only asked for its instances
        if self.place is not None:
            kwargs |= put_into(self.place, loggers)
        if not self._resume:
            return super().instantiate_trainer(**kwargs)
        if self.place is not None:
            found = newest_checkpoint(self.place)
        else:
            found = find_checkpoint(loggers, callbacks, given.get("default_root_dir"))
        self.config_init[self.subcommand]["ckpt_path"] = found
        self.save_config_kwargs["overwrite"] = True  # the config of the run that goes on
        trainer = super().instantiate_trainer(**kwargs)
        if found is not None:
            keep_log(trainer, found)
        return trainer

    def fit(self, **arguments: Any) -> None:
        """Train, and leave nothing behind where the data or the model is refused."""
        with nothing_half_written(self.trainer):
            self.trainer.fit(**arguments)

    def validate(self, **arguments: Any) -> None:
        """Measure on the validation data, likewise."""
        with nothing_half_written(self.trainer):
            self.trainer.validate(**arguments)

    def test(self, **arguments: Any) -> None:
        """Measure on the test data, likewise."""
        with nothing_half_written(self.trainer):
            self.trainer.test(**arguments)

    def _by_flag(self, given: Sequence[Callback]) -> list[Callback]:
        """Make the callbacks that have a flag of their own.

        Raises:
            ValueError: There is one of the kind already.
        """
        ema, patience = self._get(self.config_init, "ema"), self._get(self.config_init, "patience")
        if patience is not None and patience < 1:
            raise ValueError(f"--patience must be a whole number of at least 1, got {patience}.")
        made: list[Callback] = [] if ema is None else [EMA(ema)]
        if patience is not None:
            monitor, mode = getattr(self.model, "monitor", ("val_loss", "min"))
            made.append(PhasedStopping(monitor, mode=mode, patience=patience))
        for flag, kind in (("ema", WeightAveraging), ("patience", EarlyStopping)):
            twice = [c for c in given if isinstance(c, kind)]
            if twice and any(isinstance(c, kind) for c in made):
                raise ValueError(
                    f"--{flag} adds what {type(twice[0]).__name__} among the callbacks does: give one of them."
                )
        return made

    def after_fit(self) -> None:
        """Say what was left where, and what to do next."""
        if self._several:
            list(draw_report(self.trainer, self.model))
        elif not self._get(self.config_init, "trainer").get("fast_dev_run"):
            print_report(self.trainer, self.model)


def _saved_model(words: Sequence[str], chosen: str) -> dict[str, Any] | None:
    """Give the class and the hyperparameters of the model for the checkpoint that the command line names.

    A file that no module of ours wrote has none; but a module of ours that is filled from it needs no other weights.
    """
    path = _value_of(words, "--ckpt_path")
    if path is None or path in ("best", "last", "hpc", "registry"):
        return None
    if not Path(path).is_file() and "://" not in path:
        raise FileNotFoundError(f"--ckpt_path: no file at {path!r}.")
    saved = read_saved(path)
    if saved is None:
        ours = chosen.rpartition(".")[0] == modules.__name__
        return {"class_path": chosen, "init_args": {"weights": None}} if ours else None
    entry, hparams = saved
    return {
        "class_path": entry["class_path"],
        "init_args": {key: value for key, value in hparams.items() if not key.startswith("_")},
    }


def _chosen_class(words: Sequence[str], key: str, room: ModuleType) -> str | None:
    """Give the path of the class that the command line or its last config file chooses for `model` or `data`.

    It must be the default before anything is parsed: jsonargparse lets the class that takes another's place keep
    those of its arguments that both have, so that the default class's defaults would win over the chosen one's.
    """
    name = _value_of(words, f"--{key}") or _value_of(words, f"--{key}.class_path")
    for option in ("--config", "-c"):
        file = _value_of(words, option)
        if name is None and file is not None and Path(file).is_file():
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            section = content.get(key) if isinstance(content, dict) else None
            name = section.get("class_path") if isinstance(section, dict) else section
    if name in room.__all__:
        return f"{room.__name__}.{name}"
    # A class of the user's own by its full path; a file or a wrong name is left to jsonargparse.
    return name if isinstance(name, str) and _importable(name) else None


def _importable(path: str) -> bool:
    module, _, name = path.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), name), type)
    except (ImportError, AttributeError, ValueError):
        return False


def _value_of(words: Sequence[str], option: str) -> str | None:
    """Find an option's value before anything is parsed: `--option VALUE` or `--option=VALUE`."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    if argv[0] != "fit":  # a checkpoint is only measured: that its callbacks are missing does not matter
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
    run_cli(TransferCLI, argv)


def run_cli(cli: type[TransferCLI], argv: Sequence[str], **options: Any) -> None:
    """Parse `argv` as a LightningCLI does, build the classes, and run the command."""
    quiet_lightning()
    strict = {"exit_on_error": False, "allow_abbrev": False}
    cli(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults=_TRAINER_DEFAULTS,
        parser_kwargs={**strict, **{name: dict(strict) for name in cli.subcommands()}},
        args=list(argv),
        **options,
    )
