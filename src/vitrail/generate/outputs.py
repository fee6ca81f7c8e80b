"""GenerateOutput: what generate() returns for return_dict_in_generate=True. No computation."""

from dataclasses import dataclass

from torch import Tensor

from vitrail.generate.model_output import ModelOutput
from vitrail.kv.cache import KVCache


@dataclass
class GenerateOutput(ModelOutput):
    """Ids and what was recorded beside them; attribute, key and index access (fields that are None do not count).

    Attributes:
        sequences: int64 (B, T + new), prompts and completions.
        scores: per new id the processed scores (B, V) float32; zero for rows that had ended.
        logits: per new id the raw logits (B, V) float32; zero for rows that had ended.
        past_key_values: the cache, without the last id (transformers' does not hold it either).
        finish_reasons: per row "eos", "stop", "length", "time" or "criteria". Vitrail's own.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None
    finish_reasons: tuple[str, ...] | None = None
