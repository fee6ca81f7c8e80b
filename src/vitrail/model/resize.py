"""resize_token_embeddings: change the number of rows of embeddings and head."""

from typing import Any, cast

import torch
from torch import nn

from vitrail.errors import InputError, UnsupportedError
from vitrail.model.layers import Embedding, Linear
from vitrail.model.protocol import Pretrained
from vitrail.quant.replace import Quantized

MOST_ROWS = 2**24  # many times the largest vocabulary of any model


def resize_token_embeddings(
    model: Pretrained, new_num_tokens: int | None, pad_to_multiple_of: int | None, mean_resizing: bool
) -> nn.Module:
    """Resize embeddings and head to `new_num_tokens` rows, rounded up to a multiple; see PreTrainedModel."""
    table = cast(nn.Embedding, model.get_input_embeddings())
    if not isinstance(table, (nn.Embedding, Quantized)):
        raise UnsupportedError(f"{type(model).__name__} has no table of token embeddings to resize.")
    rows = table.num_embeddings if new_num_tokens is None else int(new_num_tokens)
    if pad_to_multiple_of is not None:
        pad_to_multiple_of = int(pad_to_multiple_of)
        if pad_to_multiple_of < 1:
            raise InputError(f"pad_to_multiple_of must be positive, got {pad_to_multiple_of}.")
        rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
    if rows < 1:
        raise InputError(f"new_num_tokens must be positive, got {rows}.")
    if rows == table.num_embeddings:
        return table
    if any(isinstance(module, Quantized) for module in (table, model.get_output_embeddings())):
        raise UnsupportedError(
            "embeddings and head cannot get another number of rows once they are quantised; resize the model's unquantised "
            "checkpoint, or quantise it with embeddings='bf16' and lm_head='bf16'."
        )
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    if rows > MOST_ROWS:
        raise InputError(f"new_num_tokens must be at most {MOST_ROWS:,}, got {rows:,}.")
    larger = Embedding(rows, table.embedding_dim).to(device=table.weight.device, dtype=table.weight.dtype)
    _fill(larger.weight, table.weight, text.initializer_range, mean_resizing)
    larger.weight.requires_grad_(table.weight.requires_grad)
    model.set_input_embeddings(larger)
    if head is not None:
        head = cast(nn.Linear, head)
        wider = Linear(head.in_features, rows, bias=False).to(
            device=head.weight.device, dtype=head.weight.dtype
        )
        if tied:
            wider.weight = larger.weight
        else:
            _fill(wider.weight, head.weight, text.initializer_range, mean_resizing)
            wider.weight.requires_grad_(head.weight.requires_grad)
        cast(Any, model).set_output_embeddings(wider)
    text.vocab_size = rows
    return larger


@torch.no_grad()
def _fill(new: torch.Tensor, old: torch.Tensor, std: float, mean: bool) -> None:
    kept = min(len(new), len(old))
    new[:kept] = old[:kept]
    if len(new) > kept and mean:
        new[kept:] = old.float().mean(dim=0).to(new.dtype)
    elif len(new) > kept:
        new[kept:].normal_(0.0, std)
