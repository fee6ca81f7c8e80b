"""GenerateOutput: the output of generate() for return_dict_in_generate=True."""

from dataclasses import dataclass

from torch import Tensor

from vitrail.generate.model_output import ModelOutput
from vitrail.kv.cache import KVCache


@dataclass
class GenerateOutput(ModelOutput):
    """Ids with what was recorded; attribute, key and index access (fields that are None are left out).

    Attributes:
        sequences: int64 (B, T + new), prompts and completions.
        scores: per new id the processed scores (B, V) float32; zero for rows that have ended.
        logits: per new id the raw logits (B, V) float32; zero for rows that have ended.
        past_key_values: the cache, without the last id (as in transformers).
        finish_reasons: per row "eos", "stop", "length", "time" or "criteria"; not in transformers.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None
    finish_reasons: tuple[str, ...] | None = None
