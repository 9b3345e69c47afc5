"""What tasks share whose outputs have names: who tells them, where they are saved, and what is kept of each stage."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_transfer._entry import ENTRY
from lit_transfer.heads import HeadName
from lit_transfer.modules._told_by_data import listed, told
from lit_transfer.modules.transfer_module import RunStage, TransferModule

_FEWEST = {1: "one", 2: "two"}
# By which attribute data tells its outputs, and which task is theirs; other targets would be taken without a word.
_TASKS = {
    "class_names": "an ImageClassifier",
    "label_names": "a MultiLabelClassifier",
    "target_names": "an ImageRegressor",
}


class NamedOutputs(TransferModule):
    """A module each of whose outputs has a name, known to the arguments, the data or a checkpoint, which must agree.

    A task says by which word it counts its outputs; its names are an attribute of that word (`class_names`).

    Attributes:
        records: What `configure_record` kept of each stage that ran last.
    """

    _thing: ClassVar[str]  # "class": the names are `class_names`
    _things: ClassVar[str]  # "classes": the number is `num_classes`
    _fewest: ClassVar[int] = 1
    _told_as: ClassVar[tuple[str, ...]]  # by which attributes the data tells the names
    _made: ClassVar[tuple[str, ...]] = (*TransferModule._made, "val_record", "test_record")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of `TransferModule`; the names are set by then."""
        super().__init__(*args, **kwargs)
        self.records: dict[str, Tensor] = {}

    def configure_record(self) -> Metric:
        """Make the metric that keeps of a whole stage what is no single number; `summarise` gets what it computes."""
        raise NotImplementedError(f"{type(self).__name__} must define configure_record.")

    def summarise(self, stage: RunStage, record: Tensor) -> None:
        """Work with what a stage kept, on the CPU, when all of its batches are seen; here nothing."""

    # --- number and names -----------------------------------------------------------------------------------------

    @property
    def output_names(self) -> list[str] | None:
        """Names of the outputs in their order, or None if nobody told them."""
        names: list[str] | None = getattr(self, f"{self._thing}_names")
        return names

    @output_names.setter
    def output_names(self, names: list[str] | None) -> None:
        setattr(self, f"{self._thing}_names", names)

    @property
    def _names_or_numbers(self) -> list[str]:
        return self.output_names or [str(number) for number in range(self.num_outputs or 0)]

    @classmethod
    def _agreed_number(cls, number: int | None, names: list[str] | None) -> int | None:
        """Give the number of outputs that both arguments agree on.

        Raises:
            ValueError: If they do not, or if it is too small.
        """
        word = f"num_{cls._things}"
        if number is not None and names is not None and number != len(names):
            raise ValueError(f"{word}={number}, but {cls._thing}_names has {len(names)} names: leave one out.")
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"{cls._thing}_names has a name twice: {listed(names)}.")
        number = number if names is None else len(names)
        if number is not None and number < cls._fewest:
            things = cls._things if cls._fewest > 1 else cls._thing
            raise ValueError(f"{word}={number}: {cls.__name__} needs at least {_FEWEST[cls._fewest]} {things}.")
        return number

    def _take_from_data(self) -> None:
        names = list(told(self.trainer, *self._told_as) or [])
        for word, task in _TASKS.items():
            if not names and word not in self._told_as and told(self.trainer, word):
                raise ValueError(
                    f"{type(self).__name__} learns {self._things}, and the data has {word} "
                    f"({listed(list(told(self.trainer, word)))}): train {task} on it (--model {task.split()[-1]}), or "
                    "give other data; what a table holds, data.task says."
                )
        self._agree_with_data(len(names) or told(self.trainer, f"num_{self._things}"), names)
        if self.num_outputs is None:
            raise ValueError(
                f"num_{self._things} is not given and the data does not tell it ({', '.join(self._told_as)}): pass it."
            )

    def _agree_with_data(self, number: int | None, names: list[str]) -> None:
        if number is not None and self.num_outputs is not None and number != self.num_outputs:
            raise ValueError(
                f"num_{self._things}={self.num_outputs} contradicts the data, which has {number} {self._things}"
                f"{f' ({listed(names)})' if names else ''}: leave num_{self._things} out, or give other data."
            )
        if names and self.output_names and names != self.output_names:
            raise ValueError(
                f"{self._thing}_names ({listed(self.output_names)}) contradict the data's {self._things} "
                f"({listed(names)}): leave {self._thing}_names out, or call reset_head for new {self._things}."
            )
        self.num_outputs = self.num_outputs or number
        self.output_names = self.output_names or names or None

    def _reset_head(self, number: int | None, names: list[str] | None, head: HeadName | nn.Module | None) -> None:
        """Put a fresh head with other outputs on the backbone."""
        number = self._agreed_number(number, names)
        self._refuse_with_optimizers()
        self.output_names, self.records = names, {}
        super().reset_head(num_outputs=number, head=head)

    def _columns(self, target: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give targets (N, num_outputs) in a dtype; (N,) is one column.

        Raises:
            ValueError: If there is another number of columns.
        """
        columns = target.reshape(len(target), -1).to(dtype)
        if columns.shape[1] != self.num_outputs:
            raise ValueError(
                f"The targets of a batch have the shape {tuple(target.shape)}, and {type(self).__name__} has "
                f"{self.num_outputs} {self._things} ({listed(self.output_names)}): one column for each is needed."
            )
        return columns

    # --- what is kept of a stage ----------------------------------------------------------------------------------

    def _build(self) -> None:
        """Build what is missing, and the records, which are no scalars to log."""
        super()._build()
        if not self._has("val_record"):
            self.val_record = self.configure_record()
            self.test_record = self.val_record.clone()

    def _record(self, stage: RunStage) -> Metric:
        return self.val_record if stage == "val" else self.test_record

    def update_metrics(self, stage: RunStage, answer: Tensor, target: Tensor) -> None:
        """Update the metrics and the record of a stage with one batch."""
        super().update_metrics(stage, answer, target)
        if self._is_measured(stage):
            self._record(stage).update(answer, target)

    def on_validation_start(self) -> None:
        """Start metrics and record afresh."""
        super().on_validation_start()
        self.val_record.reset()

    def on_test_start(self) -> None:
        """Start metrics and record afresh."""
        super().on_test_start()
        self.test_record.reset()

    def on_validation_epoch_end(self) -> None:
        """Keep what there is to keep of the validation data."""
        self._keep("val")

    def on_test_epoch_end(self) -> None:
        """Keep what there is to keep of the test data."""
        self._keep("test")

    def _keep(self, stage: RunStage) -> None:
        if self._is_measured(stage):
            metric = self._record(stage)
            self.records[stage] = metric.compute().cpu()
            metric.reset()
            self.summarise(stage, self.records[stage])

    def _log_value(self, metric: str, stage: RunStage, value: float) -> None:
        """Log what is known for a whole stage; all processes have the same value."""
        self.log(f"{stage}_{metric}", value, prog_bar=stage == "val", sync_dist=True)

    def _log_by_name(self, metric: str, stage: RunStage, values: Mapping[str, float]) -> None:
        """Log one value for each name; all processes have the same ones."""
        for name, value in values.items():
            self.log(f"{stage}_{metric}_{name}", value, sync_dist=True)

    # --- LightningModule ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take number and names of the outputs from the data where they were not given.

        Raises:
            ValueError: If the data contradicts, or does not tell what is asked of it.
        """
        self._take_from_data()
        super().setup(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the names of the outputs beside what the base class writes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[ENTRY][f"{self._thing}_names"] = self.output_names

    def _arguments_now(self) -> dict[str, Any]:
        now = {f"num_{self._things}": self.num_outputs, f"{self._thing}_names": self.output_names}
        return {**super()._arguments_now(), **now}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the names of the outputs, and refuse a checkpoint with others than there are by now.

        Raises:
            ValueError: If the checkpoint has other outputs than this module has by now.
        """
        saved = checkpoint.get(ENTRY, {})
        self._agree_with_data(saved.get("num_outputs"), saved.get(f"{self._thing}_names") or [])
        super().on_load_checkpoint(checkpoint)


class Answers(Metric):
    """Keeps all answers and targets of a stage, those of all processes, as a tensor (2, N, num_outputs)."""

    full_state_update = False
    answers: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answers", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Keep a batch of answers and targets, both (N, num_outputs)."""
        self.answers.append(answer.detach().float())
        self.targets.append(target.float())

    def compute(self) -> Tensor:
        """Give answers and targets, stacked."""
        parts: list[Any] = [self.answers, self.targets]  # gathering of processes leaves a tensor in place of a list
        return torch.stack([part if isinstance(part, Tensor) else torch.cat(part) for part in parts])
