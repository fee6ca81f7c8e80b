"""MistralRows: single rows of ids in MistralCommonTokenizer, cut, padded and masked. Texts and batches: mistral.py."""

from __future__ import annotations

from typing import Any

from vitrail.arguments import checked
from vitrail.errors import InputError, UnsupportedError
from vitrail.images.batch_feature import BatchFeature
from vitrail.tokenizer.base import BaseTokenizer, refuse_unknown
from vitrail.tokenizer.mistral_vocabulary import MistralVocabulary
from vitrail.tokenizer.padding import pad_rows

_STRATEGIES = ("longest_first", "do_not_truncate")


@checked
class MistralRows(MistralVocabulary, BaseTokenizer):
    """The methods of transformers' class that take ids."""

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Cut and pad one row of ids, and add the columns on request. No ids are added except padding.

        Raises:
            InputError: unknown arguments or lengths.
            UnsupportedError: pairs.
        """
        _refuse("prepare_for_model", pair_ids, kwargs)
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of, padding_side)
        excess = 0 if plan.limit is None else len(ids) - plan.limit
        kept, _, overflow = self.truncate_sequences(list(ids), num_tokens_to_remove=excess, stride=stride)
        columns = {"input_ids": [kept]}
        if return_special_tokens_mask:
            mask = self.get_special_tokens_mask(kept) if add_special_tokens else [0] * len(kept)
            columns["special_tokens_mask"] = [mask]
        if self._wants("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(kept)]
        out: dict[str, Any] = {name: rows[0] for name, rows in pad_rows(columns, plan, self._pads()).items()}
        if return_overflowing_tokens:
            out |= {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
        if return_length:
            out["length"] = len(out["input_ids"])
        if prepend_batch_axis and return_tensors is not None:
            out = {name: [value] for name, value in out.items()}
        return BatchFeature(out, return_tensors)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
        **kwargs: Any,
    ) -> tuple[list[int], None, list[int]]:
        """Remove `num_tokens_to_remove` ids at `truncation_side`.

        Args:
            stride: ids beside the cut that are repeated in the third result.

        Returns:
            The ids that stay, None, and the removed ids with their `stride`.

        Raises:
            InputError: more ids to remove than there are, or an unknown strategy.
            UnsupportedError: pairs.
        """
        _refuse("truncate_sequences", pair_ids, kwargs)
        strategy = getattr(truncation_strategy, "value", truncation_strategy)
        if strategy not in _STRATEGIES:
            raise InputError(f"truncation_strategy is one of {', '.join(_STRATEGIES)}; got {strategy!r}")
        if num_tokens_to_remove <= 0 or strategy == "do_not_truncate":
            return ids, None, []
        if num_tokens_to_remove >= len(ids):
            raise InputError(f"{num_tokens_to_remove} ids cannot be removed from a row of {len(ids)}")
        window = min(len(ids), stride + num_tokens_to_remove)
        if self.truncation_side == "left":
            return ids[num_tokens_to_remove:], None, ids[:window]
        return ids[:-num_tokens_to_remove], None, ids[-window:]


def _refuse(owner: str, pair_ids: Any, kwargs: dict[str, Any]) -> None:
    if pair_ids:
        raise UnsupportedError(f"{owner}: pair_ids is not supported; encode one text at a time")
    refuse_unknown(owner, kwargs)
