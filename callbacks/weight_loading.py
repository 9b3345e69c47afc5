"""Weights from any file into any LightningModule, before training starts."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_transfer.weights import LoadReport, MapLocation, WeightsError, load_weights


class WeightLoading(Callback):
    """Load a file's weights into the module that is trained, all or nothing, and log the report.

    It works in `setup`, where the module exists on every rank and neither the optimizer nor a strategy has seen it;
    a module that makes its layers in `configure_model` is filled in `on_fit_start`, the first hook after that. A run
    that resumes from a checkpoint has its weights from there, and a second `fit` goes on with those that it has.

    Attributes:
        report: What was loaded, or None before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        key: str | None = None,
        head: str | Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        on_mismatch: Literal["adapt", "skip", "error"] = "adapt",
        min_coverage: float = 1.0,
        prefer: Literal["ema", "plain"] = "ema",
        match: Literal["name", "order"] = "name",
        map_location: MapLocation = None,
    ) -> None:
        """Remember what to load; the arguments are those of `load_weights`."""
        self.path = os.fspath(path)
        self.report: LoadReport | None = None
        self._refused: WeightsError | FileNotFoundError | None = None
        self._module: int | None = None  # id of the module that has been filled
        self._arguments: dict[str, Any] = {
            "target": target,
            "key": key,
            "head": head,
            "rename": rename,
            "include": include,
            "exclude": exclude,
            "on_mismatch": on_mismatch,
            "min_coverage": min_coverage,
            "prefer": prefer,
            "match": match,
            "map_location": map_location,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load, if the module has its layers by now.

        Whether the run resumes is not known yet: then the checkpoint's weights take the place of these, and what was
        wrong with the file is forgotten.

        Raises:
            ValueError: If the module was given weights of its own.
        """
        if stage != "fit" or self._module == id(pl_module):
            return
        own = getattr(getattr(pl_module, "backbone", None), "weights", None)
        if own is not None:
            raise ValueError(
                f"Both weights={own!r} of {type(pl_module).__name__} and path={self.path!r} of WeightLoading give "
                "weights: set weights=None, or leave the callback out."
            )
        self.report = self._refused = None
        if any(True for _ in pl_module.parameters()):
            try:
                self.report = load_weights(pl_module, self.path, **self._arguments)
            except (WeightsError, FileNotFoundError) as error:
                self._refused = error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load into a module that made its layers in `configure_model`, and tell what was loaded.

        Raises:
            WeightsError: If the file cannot be read or does not fit; the module is untouched.
            FileNotFoundError: If there is no file.
        """
        if self._module == id(pl_module):
            return
        self._module = id(pl_module)
        if trainer.ckpt_path is not None:
            self.report = None
            return
        if self._refused is not None:
            raise self._refused
        self.report = self.report or load_weights(pl_module, self.path, **self._arguments)
        rank_zero_info(str(self.report))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write into every checkpoint where its first weights came from."""
        if self.report is not None:
            where = f", key {self.report.key!r}" if self.report.key else ""
            checkpoint["weights_from"] = f"{self.path}{where}: {self.report.coverage:.1%} of the tensors"
