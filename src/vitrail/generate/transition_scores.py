"""compute_transition_scores(): score of every generated id, from the scores of generate()'s output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import InputError, UnsupportedError


def compute_transition_scores(
    model: Any,
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """Compute the score of every generated id.

    Args:
        model: ignored; a parameter because this is a method of models.
        sequences: (R, T + new), `output.sequences` of generate().
        scores: `output.scores` or `output.logits` of generate(), (R, V) per new id. Rows that have ended have zeros, so
            the result is meaningless at padding, as in transformers.
        beam_indices: not supported; None.
        normalize_logits: return log-probabilities.

    Returns:
        (R, new).
    """
    if beam_indices is not None:
        raise UnsupportedError("beam_indices is not supported: there are no beams; leave it out.")
    listed = isinstance(scores, (list, tuple)) and bool(scores)
    if not listed or not all(isinstance(step, Tensor) and step.dim() == 2 for step in scores):
        raise InputError(
            "scores must be the scores (rows, vocabulary) of every new id; generate with output_scores=True and "
            "return_dict_in_generate=True."
        )
    stacked = torch.stack(list(scores), dim=1)  # (R, new, V)
    if not isinstance(sequences, Tensor) or sequences.dim() != 2 or sequences.shape[1] < len(scores):
        raise InputError(f"sequences must be ids (rows, positions) with {len(scores)} new ones at the end.")
    if len(sequences) != len(stacked):
        raise InputError(f"sequences has {len(sequences)} rows, scores has {len(stacked)}.")
    if normalize_logits:
        stacked = torch.log_softmax(stacked, dim=-1)
    drawn = sequences[:, -len(scores) :].to(stacked.device)
    return stacked.gather(2, drawn[..., None]).squeeze(2)
