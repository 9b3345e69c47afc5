"""`lit-transfer probe`: linear probes and k-NN at every stage of a backbone, and fine-tuning above it on request."""

import copy
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.progress import track
from torch import nn

from lit_transfer.callbacks import FeatureCaching, FinetuningSchedule
from lit_transfer.cli._noise import LEAVES_NOTHING, only_warnings
from lit_transfer.cli._parsing import nearest
from lit_transfer.cli._places import check_places
from lit_transfer.cli._probes import (
    MEASURES,
    Measured,
    largest_class,
    linear_probe,
    nearest_neighbours,
    plot_probes,
    scores_of,
    verdict,
)
from lit_transfer.cli._stage_features import FeatureTrainer
from lit_transfer.cli._tables import as_count, as_size, make_table, show
from lit_transfer.cli.training import TransferCLI, run_cli
from lit_transfer.features import cache_folder, list_entries
from lit_transfer.stages import Stage, stages_of

_NONE = "none"  # the boundary below which there is nothing


class ProbeCLI(TransferCLI):
    """Takes the model and the data as `fit` does, and measures the model's backbone stage by stage."""

    trainer: FeatureTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Have the one command."""
        return {"probe": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is measured, and where the answers go."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.max_epochs": None})
        boundaries = "names of stages; all of them by default. With --finetune also none: nothing is frozen"
        parser.add_argument("--boundaries", nargs="+", default=["all"], metavar="STAGE", help=boundaries)
        parser.add_argument("--neighbours", type=PositiveInt, default=5, help="of k-NN, by cosine")
        parser.add_argument("--finetune", action="store_true", help="also fine-tune what lies above each boundary")
        parser.add_argument("--finetune_epochs", type=PositiveInt, default=5, help="epochs of each fine-tuning")
        parser.add_argument("--folder", type=str | None, help="where features are stored, instead of the usual place")
        parser.add_argument("-o", "--output", type=str | None, help="CSV file for the answers")
        parser.add_argument("--plot", type=str | None, help="file for a picture of accuracies by boundary")
        parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make what reads the features.

        Raises:
            ValueError: Arguments of the Trainer that this command decides on itself, or several devices.
        """
        given = self._get(self.config_init, "trainer")
        if given.get("max_epochs") is not None or given.get("callbacks"):
            raise ValueError("probe takes --finetune_epochs in the place of --trainer.max_epochs, and no callbacks.")
        trainer = self._new_trainer(1, **kwargs)
        assert isinstance(trainer, FeatureTrainer)
        if trainer.world_size > 1 or self._get(self.config_init, "gpus"):
            raise ValueError("probe runs on one device: give --trainer.devices=1, or [2] for the third one, no --gpus.")
        folder = self._get(self.config, "folder")
        trainer.folder = cache_folder() if folder is None else Path(folder)
        return trainer

    def _new_trainer(self, epochs: int, **kwargs: Any) -> Trainer:
        # Not that of TransferCLI, which adds callbacks and looks for free GPUs.
        devices = self._get(self.config_init, "trainer").devices
        chosen = {"devices": 1 if devices == "auto" else devices, "max_epochs": epochs, **LEAVES_NOTHING}
        return LightningCLI.instantiate_trainer(self, **{**chosen, "callbacks": [], **kwargs})

    def before_probe(self) -> None:
        """Refuse what is wrong before anything takes time, and let images be seen as in evaluation.

        Raises:
            ValueError: A boundary or a place for the answers that there is not.
        """
        backbone = getattr(self.model, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ValueError(f"{type(self.model).__name__} has no module called backbone, whose stages are probed.")  # noqa: TRY004  # the class is right, its content is not
        self._stages = [stage for stage in stages_of(backbone) if stage.name != "head"]
        self._boundaries = _chosen(
            self._get(self.config, "boundaries"), self._stages, finetune=self._get(self.config, "finetune")
        )
        check_places(output=self._get(self.config, "output"), plot=self._get(self.config, "plot"))
        if hasattr(self.datamodule, "augment"):
            self.datamodule.augment = "none"
        # As it is before the data: the modules that are fine-tuned later begin with these weights.
        self._fresh = copy.deepcopy(self.model) if self._get(self.config, "finetune") else None
        self._start = time.perf_counter()

    def after_probe(self) -> None:
        """Measure, and print, write and draw what was found."""
        notes = _about_storing(self.trainer, time.perf_counter() - self._start)
        rows = [self._measured(name, notes) for name in self._boundaries]
        if self._fresh is not None:
            console = Console(stderr=True)  # standard output is for the answer
            shown = track(rows, "fine-tuning", console=console, disable=not console.is_terminal, transient=True)
            rows = [self._finetuned(row, copy.deepcopy(self._fresh), notes) for row in shown]
            notes.append(_about_size(self.trainer.folder))
        self._tell(rows, notes)

    def _measured(self, name: str, notes: list[str]) -> Measured:
        held = [stage.name for stage in self._stages]
        held = held[: held.index(name) + 1] if name != _NONE else []
        parameters = dict(self.model.backbone.named_parameters())
        frozen = sum(parameters[n].numel() for stage in self._stages if stage.name in held for n in stage.parameters)
        row = Measured(name, frozen, sum(p.numel() for p in self.model.parameters()) - frozen)
        train, val = self.trainer.train, self.trainer.val
        if name not in train.vectors:
            notes += [f"{name} is not probed: what it gives is no feature map, tokens or vector"] * (name != _NONE)
            return row
        given = train.vectors[name], train.labels, val.vectors[name], val.labels
        knn = nearest_neighbours(*given, neighbours=self._get(self.config, "neighbours"))
        return replace(row, width=given[0].shape[1], probe=linear_probe(*given), knn=knn)

    def _finetuned(self, row: Measured, model: LightningModule, notes: list[str]) -> Measured:
        """Fine-tune what lies above a boundary, from the weights that were probed, on cached features."""
        seed, epochs = self._get(self.config, "seed_everything"), self._get(self.config, "finetune_epochs")
        frozen = [stage.name for stage in self._stages].index(row.boundary) + 1 if row.boundary != _NONE else 0
        callbacks = [FinetuningSchedule({"preset": "freeze_first_k", "k": frozen})]
        caching = [FeatureCaching(folder=self.trainer.folder)] if frozen else []
        trainer = self._new_trainer(epochs, callbacks=[*callbacks, *caching], check_val_every_n_epoch=epochs)
        seed_everything(int(seed), workers=True, verbose=False)
        start = time.perf_counter()
        try:
            trainer.fit(model, datamodule=self.datamodule)
        except ValueError as error:  # such as a boundary that several tensors cross; the others are worth their time
            notes.append(f"{row.boundary} is not fine-tuned: {error}")
            return row
        if (accuracy := trainer.callback_metrics.get("val_acc")) is None:
            notes.append(f"{row.boundary} is not measured after fine-tuning: the module logs no val_acc.")
            return row
        return replace(row, finetuned=accuracy.item(), seconds=time.perf_counter() - start)

    def _tell(self, rows: Sequence[Measured], notes: Sequence[str]) -> None:
        train, val = self.trainer.train, self.trainer.val
        name, images = getattr(self.model.backbone, "name", type(self.model.backbone).__name__), len(val.labels)
        baseline = largest_class(train.labels, val.labels)
        sizes = f"{as_count(len(train.labels), 'image')} to learn from, {images:,} to measure on"
        said = [verdict(label, scores, images) for key, label in MEASURES.items() if (scores := scores_of(rows, key))]
        if self._get(self.config, "json"):
            found = {"backbone": name, "train": len(train.labels), "val": images, "most_frequent_class": baseline}
            print(json.dumps({**found, "boundaries": [asdict(row) for row in rows], "notes": [*notes, *said]}))
        else:
            always = f"always saying the most frequent class gives {baseline:.1%}"
            one = f"± is one standard error, and one of {images:,} images is {1 / images:.2%}"
            worth = f"{one}; what is less than two standard errors apart is not told apart"
            show(f"{name}: {sizes}; {always}", *notes, "", _table(rows), "", *said, worth)
        if output := self._get(self.config, "output"):
            _write(rows, Path(output))
        if picture := self._get(self.config, "plot"):
            plot_probes(rows, f"{name}: {sizes}", images=images, baseline=baseline).savefig(picture, dpi=120)


def _chosen(words: Sequence[str], stages: Sequence[Stage], *, finetune: bool) -> list[str]:
    """Give the boundaries that are meant, from the stem on.

    Raises:
        ValueError: One that there is not, or `none` where nothing is fine-tuned.
    """
    names = [_NONE, *(stage.name for stage in stages)]
    for word in words:
        if word not in [*names, "all"]:
            raise ValueError(
                f"--boundaries: there is no stage {word!r}.{nearest(word, names)} Stages: {', '.join(names[1:])}."
            )
    if _NONE in words and not finetune:
        raise ValueError("--boundaries none: before the first stage are only the images; it is for --finetune.")
    return [name for name in names if name in words or ("all" in words and name != _NONE)]


def _about_storing(trainer: FeatureTrainer, seconds: float) -> list[str]:
    """Say whether the images were read, and where their features lie."""
    sets = (trainer.train, trainer.val)
    if lost := next((one.lost for one in sets if one.lost), None):
        return [f"features computed in {seconds:.1f} s, and not kept for another run: {lost}"]
    how = "found" if all(one.found for one in sets) else f"computed in {seconds:.1f} s, once for all stages, and stored"
    return [f"features {how} in {trainer.folder}"]


def _about_size(folder: Path) -> str:
    """Say how much is stored: feature maps of the first stages are larger than photos."""
    size = sum(file.stat().st_size for path, _, _ in list_entries(folder) for file in path.iterdir())
    return (
        f"{as_size(size)} of features are stored by now, for this run and others; lit-transfer cache clear removes them"
    )


def _table(rows: Sequence[Measured]) -> Any:
    columns = ["boundary", "frozen", "trains", "width", *MEASURES.values(), "seconds"]
    cells = [
        (
            row.boundary,
            f"{row.frozen:,}",
            f"{row.trains:,}",
            "" if row.width is None else row.width,
            *("" if (value := getattr(row, key)) is None else f"{value:.1%}" for key in MEASURES),
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
        for row in rows
    ]
    return make_table(columns, cells, numbers=columns[1:])


def _write(rows: Sequence[Measured], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(argv: Sequence[str]) -> None:
    """Run the command with `argv`, whose first word is its name."""
    with only_warnings():
        run_cli(ProbeCLI, argv, trainer_class=FeatureTrainer, save_config_callback=None)
