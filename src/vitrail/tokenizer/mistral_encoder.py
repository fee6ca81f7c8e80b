"""MistralEncoder: pieces → ids with a tokenizer of mistral-common, and the prompt format of its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitrail.errors import PromptError
from vitrail.prompts.builtin.description import Efforts, Format
from vitrail.prompts.builtin.encode import CARRIER
from vitrail.prompts.builtin.pieces import BOS, EOS
from vitrail.prompts.builtin.versions import find_format


class MistralEncoder:
    """Encodes with `inner`, the text tokenizer of a mistral-common MistralTokenizer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.spaced = not hasattr(inner, "id_to_byte_piece")  # only Tekken has byte pieces
        self._found: dict[str, int | None] = {BOS: int(inner.bos_id), EOS: int(inner.eos_id)}

    def find(self, name: str) -> int | None:
        """Return the id of a control token; None if there is none of this name."""
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text on its own."""
        try:
            ids: list[int] = self._inner.encode(text, bos=False, eos=False)
        except (UnicodeError, TypeError, ValueError, RuntimeError) as error:
            raise PromptError(f"a text cannot be encoded: {error}") from error
        return ids

    def encode_bare(self, text: str) -> list[int]:
        """Return the ids of a text with nothing in front."""
        return self.encode_infill(text) if self.spaced else self.encode(text)

    def encode_infill(self, text: str) -> list[int]:
        """Return the ids of a text behind the carrier, which is two ids in all of Mistral's tokenizers."""
        return self.encode(CARRIER + text)[2:]

    def _look_up(self, name: str) -> int | None:
        try:
            get = getattr(self._inner, "get_special_token", None) or self._inner.get_control_token
            index = int(get(name))
        except (ValueError, KeyError):
            return None
        if self.spaced and (index == self._inner.unk_id or not self._inner.is_special(index)):
            return None  # SentencePiece silently returns <unk> for unknown names
        return index


def format_of_file(tokenizer: Any) -> Format:
    """Return the built-in format of a MistralTokenizer's file. Raises PromptError for unknown ones."""
    instruct = tokenizer.instruct_tokenizer
    inner = instruct.tokenizer
    version = str(getattr(inner.version, "value", inner.version))
    encoder = MistralEncoder(inner)
    images = getattr(instruct, "image_encoder", None) or getattr(instruct, "mm_encoder", None)
    name = version
    if version == "v3" and not encoder.spaced:
        name = "v3-tekken"
    elif version == "v7":
        name = ("v7m1" if images else "v7") if encoder.spaced else "v7-tekken"
    form = find_format(name)
    if images is None:
        form = replace(form, images=frozenset())
    return replace(form, efforts=_efforts(inner)) if form.settings else form


def _efforts(inner: Any) -> Efforts | None:
    builder = getattr(inner, "model_settings_builder", None)
    effort = getattr(builder, "reasoning_effort", None)
    if effort is None:
        return None
    return Efforts(
        tuple(str(getattr(v, "value", v)) for v in effort.values),
        str(getattr(effort.default, "value", effort.default)),
    )
