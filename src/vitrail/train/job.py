"""Job: one training run from files to files, as `vitrail train` runs it. The loop is in trainer.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from vitrail.adapters.config import LoraConfig
from vitrail.arguments import checked
from vitrail.auto import AutoConfig
from vitrail.errors import InputError
from vitrail.files.writing import refuse_blocked, writing
from vitrail.model.pretrained import PreTrainedModel
from vitrail.train.dataset import Dataset, open_dataset, refuse_faults
from vitrail.train.packing import mixed
from vitrail.train.settings import Method, Settings
from vitrail.train.setup import (
    QUANTISED,
    Inputs,
    fingerprint,
    longest_of,
    make_adapter,
    open_inputs,
    open_model,
    parts_of,
    train_parts,
)
from vitrail.train.trainer import CHECKPOINTS, Outcome, Trainer

MERGED = "merged"
_RATES = {"lora": 2e-4, "full": 2e-5}
_MODEL_FILES = ("config.json", "params.json", "adapter_config.json")


@dataclass(frozen=True)
class Reading:
    """The checked conversations of a job."""

    data: Dataset
    evaluation: Dataset | None
    inputs: Inputs

    @property
    def faults(self) -> list[str]:
        """Every unusable record, as text."""
        sets = [self.data] if self.evaluation is None else [self.data, self.evaluation]
        return [f"{one.records.name}: {fault}" for one in sets for fault in one.faults]


@checked
@dataclass(frozen=True)
class Job:
    """Model, data and method of a training run.

    Attributes:
        data: conversations: a file or folder, a `datasets.Dataset` or a list, see `data_files.open_records`.
        out: folder for all output.
        method: "lora" trains an adapter, configured by `lora`; "full" all weights of `parts`.
        quantize: pack the frozen base: "nf4", "fp4" or "int8".
        parts: language_model, projector, vision_tower; () means the language model for an adapter, else all.
        evaluation: data for evaluation; or eval_share, a share of `data` drawn for evaluation.
        longest: maximum positions of a conversation (None: the model's).
        format: prompt format, as for `vitrail prompt`.
        dtype: of frozen weights; "auto" is the checkpoint's, None float32.
        merge: also write a whole checkpoint with the merged adapter.

    Raises:
        InputError: contradictory settings.
    """

    data: Any
    model: str
    out: Path | None = None
    settings: Settings = field(default_factory=Settings)
    method: Method = "lora"
    lora: LoraConfig = field(
        default_factory=lambda: LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    )
    quantize: str | None = None
    parts: tuple[str, ...] = ()
    evaluation: Any = None
    eval_share: float = 0.0
    skip_bad: bool = False
    longest: int | None = None
    max_image_tokens: int | None = None
    format: str | None = None
    dtype: str | None = None
    device: str = "auto"
    merge: bool = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"method is one of {', '.join(get_args(Method))}, got {self.method!r}.")
        if self.quantize is not None and self.quantize not in QUANTISED:
            raise InputError(f"quantize is one of {', '.join(QUANTISED)}, got {self.quantize!r}.")
        if self.quantize is not None and self.method == "full":
            raise InputError("packed weights cannot be trained: quantize goes with method 'lora'.")
        if self.merge and self.method == "full":
            raise InputError("merge works an adapter into the weights; method 'full' makes none.")
        if (
            self.method == "full"
            and self.dtype not in (None, "float32")
            and self.settings.precision != "bf16"
        ):
            raise InputError(
                f"weights in {self.dtype} beside the trained ones, which are float32, need precision 'bf16' (--bf16)."
            )
        if not 0 <= self.eval_share < 1:
            raise InputError(f"eval_share is a share from 0 to below 1, got {self.eval_share!r}.")
        if self.eval_share and self.evaluation is not None:
            raise InputError("give a file for evaluation or a share of the data, not both.")
        if (self.settings.patience or self.settings.eval_every) and not (self.eval_share or self.evaluation):
            raise InputError(
                "patience and eval_every need conversations to evaluate with: a file or a share of the data."
            )

    def read(self, progress: Callable[[int, int], None] | None = None) -> Reading:
        """Read and check every record and image, without the model's weights. Faults are collected, not raised."""
        if self.out is not None:
            self._folder()
        inputs = open_inputs(self.model, max_image_tokens=self.max_image_tokens)
        most = longest_of(self.model)
        if self.longest is not None and not 0 < self.longest <= most:
            raise InputError(
                f"longest is a number from 1 to the model's {most:,} positions, got {self.longest}."
            )
        maker = inputs.examples(self.longest or most, self.format)
        data = open_dataset(self.data, maker, progress)
        evaluation = None
        if self.evaluation is not None:
            evaluation = open_dataset(self.evaluation, maker, progress)
        return Reading(data, evaluation, inputs)

    def run(
        self,
        reading: Reading,
        *,
        on_start: Callable[[Trainer], None] | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Train, or resume an earlier run, and write the result to `out`.

        A stopped run writes its current weights, and can be resumed by another call.

        Args:
            reading: from `read`.
            on_start: called with the trainer before its first step.
            on_step: called with every record.

        Raises:
            InputError: unusable records (unless skip_bad), or a folder with other content.
        """
        out = self._folder()
        for data in (reading.data, reading.evaluation):
            if data is not None:
                refuse_faults(data, self.skip_bad)
        data, evaluation = self._split(reading)
        model = self._model()
        trainer = Trainer(
            model,
            data,
            out,
            self.settings,
            evaluation=evaluation,
            prepare=reading.inputs.prepare,
            lr=_RATES[self.method],
            identity=self._identity(),
            on_step=on_step,
        )
        trainer.resume()
        if on_start is not None:
            on_start(trainer)
        outcome = trainer.run()
        trainer.settle()
        with writing(out):
            self._write(model, reading.inputs, out)
        return outcome

    def _folder(self) -> Path:
        if self.out is None:
            raise InputError("give a folder for the result.")
        refuse_blocked(self.out)
        if not (self.out / CHECKPOINTS).is_dir():
            for name in _MODEL_FILES:
                if (self.out / name).exists():
                    raise InputError(
                        f"{self.out} holds {name}, which is not of this run; choose another folder."
                    )
        return self.out

    def _split(self, reading: Reading) -> tuple[Dataset, Dataset | None]:
        if not self.eval_share:
            return reading.data, reading.evaluation
        count = len(reading.data)
        aside = max(1, round(count * self.eval_share))
        if aside >= count:
            raise InputError(
                f"{aside} of {count} conversations for evaluation leave none to learn; lower eval_share."
            )
        generator = torch.Generator().manual_seed(mixed(self.settings.seed, -1))
        order = torch.randperm(count, generator=generator).tolist()
        return reading.data.part(sorted(order[aside:])), reading.data.part(sorted(order[:aside]))

    def _model(self) -> PreTrainedModel:
        dtype = self.dtype or "float32"
        model = open_model(self.model, quantize=self.quantize, dtype=dtype, device=self.device)
        if self.method == "full":
            train_parts(model, parts_of(model, self.parts, adapter=False))
        else:
            parts = parts_of(model, self.parts, adapter=True)
            make_adapter(model, self.lora, parts, self.settings.seed, name=self.model)
        return model

    def _identity(self) -> dict[str, Any]:
        """Return everything besides the settings that must be equal to resume a run."""
        return {
            "model": self.model,
            "weights": fingerprint(self.model),
            "method": self.method,
            "lora": self.lora.to_dict() if self.method == "lora" else None,
            "quantize": self.quantize,
            "parts": list(self.parts),
            "eval_share": self.eval_share,
            "longest": self.longest,
            "max_image_tokens": self.max_image_tokens,
            "format": self.format,
            "dtype": self.dtype,
        }

    def _write(self, model: PreTrainedModel, inputs: Inputs, out: Path) -> None:
        """Write the adapter, or the whole checkpoint with its tokenizer or processor."""
        if self.method == "lora":
            model.save_adapter(out)
        if self.method == "full" or self.merge:
            target = out / MERGED if self.merge else out
            (target / "config.json").unlink(missing_ok=True)  # half-written weights must not load
            target.mkdir(parents=True, exist_ok=True)
            (inputs.processor or inputs.maker.tokenizer).save_pretrained(target)
            whole = model.merge_and_unload() if self.merge else model
            whole.to(self._saved_type()).save_pretrained(target)

    def _saved_type(self) -> torch.dtype:
        """Return the dtype of a whole checkpoint: that of the frozen weights."""
        named = self.dtype or "float32"
        if named == "auto":
            named = str(AutoConfig.from_pretrained(self.model).dtype or "float32").removeprefix("torch.")
        found: torch.dtype = getattr(torch, named)
        return found


TrainingJob = Job  # name in `vitrail`
