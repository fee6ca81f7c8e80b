"""Special-token escaping: control tokens typed by a user become text, those of the template become ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrail.errors import PromptError
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.tokenizer.safety import no_panic

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_FIRST, _LAST = 0xE000, 0xF8FF  # the private use area of the basic plane


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded text; the fields are those of the library's `Encoding`."""

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    offsets: list[tuple[int, int]]
    tokens: list[str]
    answers: list[int]  # 1 for ids of the assistant; [] if not requested

    @classmethod
    def of(cls, encoding: Encoding) -> Row:
        """Make a row of the library's values."""
        return cls(
            encoding.ids,
            encoding.type_ids,
            encoding.attention_mask,
            encoding.special_tokens_mask,
            encoding.offsets,
            encoding.tokens,
            [],
        )

    def append(self, row: Row, position: int, index: int, token: str) -> None:
        """Add one id, with the other fields of `row` at `position`."""
        self.ids.append(index)
        self.tokens.append(token)
        for name in ("type_ids", "attention_mask", "special_tokens_mask", "offsets"):
            getattr(self, name).append(getattr(row, name)[position])


class EscapingCopy:
    """Copy of a tokenizer in which control tokens are text and their aliases, strings of no text, are controls.

    The text around the controls passes through the same normaliser, pre-tokeniser and model in one call, so every
    id except those of the typed control tokens is the same as in the original tokenizer.
    """

    def __init__(self, backend: Tokenizer, mark: str) -> None:
        from tokenizers import AddedToken, Tokenizer

        self.mark = mark
        with no_panic("this tokenizer cannot be copied"):
            self.copy = Tokenizer.from_str(backend.to_str())
        self.copy.encode_special_tokens = True
        controls = {i: token for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.aliases = {token.content: f"{mark}{index}{mark}" for index, token in controls.items()}
        self.copy.add_tokens(
            [
                AddedToken(
                    self.aliases[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in controls.values()
            ]
        )
        self.real = {self.copy.token_to_id(self.aliases[token.content]): i for i, token in controls.items()}
        self.controls = {i: token.content for i, token in controls.items()}
        unknown = getattr(self.copy.model, "unk_token", None)
        self.harmless = {backend.token_to_id(unknown)} if unknown else set()

    @classmethod
    def for_text(cls, backend: Tokenizer, text: str, made: list[EscapingCopy]) -> EscapingCopy:
        """Return a copy whose aliases do not occur in `text`: one of `made`, or a new one, added to it."""
        for copy in made:
            if copy.mark not in text:
                return copy
        taken = {copy.mark for copy in made}
        for code in range(_FIRST, _LAST + 1):
            if chr(code) not in text and chr(code) not in taken:
                made.append(cls(backend, chr(code)))
                del made[:-4]
                return made[-1]
        raise PromptError("the messages use every private-use character; a prompt needs one of them free")

    def encode(self, prompt: RenderedPrompt, add_special_tokens: bool, limit: int | None, side: str) -> Row:
        """Encode one prompt, cut to `limit` ids at `side`."""
        text, original = prompt.aliased(self.aliases)
        row = Row.of(encode_cut(self.copy, [text], add_special_tokens, limit, side)[0])
        row.offsets[:] = [(original(start), original(stop)) for start, stop in row.offsets]
        made = Row([], [], [], [], [], [], [])
        for position, (index, added) in enumerate(zip(row.ids, row.special_tokens_mask, strict=True)):
            if index in self.real:
                made.append(row, position, self.real[index], self.controls[self.real[index]])
            elif not added and index in self.controls and index not in self.harmless:
                for letter in self._spelled(self.controls[index]):
                    made.append(row, position, letter, self.copy.id_to_token(letter))
            else:
                made.append(row, position, index, row.tokens[position])
        return made

    def _spelled(self, control: str) -> list[int]:
        """Return the ids of a typed control token's letters, for models with the token in their vocabulary."""
        with no_panic("a text cannot be encoded"):
            ids = [i for letter in control for i in self.copy.encode(letter, add_special_tokens=False).ids]
        return [index for index in ids if index not in self.controls or index in self.harmless]


def encode_cut(
    backend: Tokenizer,
    texts: Sequence[object],
    add_special_tokens: bool,
    limit: int | None,
    side: str,
    words: bool = False,
) -> list[Encoding]:
    """Encode a batch; rows longer than `limit` lose ids at `side`, but never those of the post-processor."""
    with no_panic("a text cannot be encoded"):
        return _encode_cut(backend, texts, add_special_tokens, limit, side, words)


def _encode_cut(
    backend: Tokenizer,
    texts: Sequence[object],
    add_special_tokens: bool,
    limit: int | None,
    side: str,
    words: bool,
) -> list[Encoding]:
    if limit is None:
        return list(backend.encode_batch(texts, is_pretokenized=words, add_special_tokens=add_special_tokens))
    encodings = backend.encode_batch(texts, is_pretokenized=words, add_special_tokens=False)
    room = max(0, limit - (backend.num_special_tokens_to_add(False) if add_special_tokens else 0))
    for encoding in encodings:
        encoding.truncate(room, direction=side)
    return [backend.post_process(encoding, add_special_tokens=add_special_tokens) for encoding in encodings]
