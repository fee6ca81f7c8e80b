"""BaseTokenizer: lengths, padding, prompts and decoding common to FastTokenizer and MistralCommonTokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vitrail.arguments import check, checked
from vitrail.errors import InputError
from vitrail.images.batch_feature import BatchFeature, check_tensor_type
from vitrail.prompts.builtin import Encoder, Format
from vitrail.prompts.builtin.encode_chat import build_chat, choose_format
from vitrail.prompts.builtin.pieces import IMAGE
from vitrail.prompts.render import Chat, choose_template, render_chat
from vitrail.prompts.rendered_prompt import RenderedPrompt, as_prompt
from vitrail.prompts.template_files import ChatTemplate
from vitrail.responses.ids import to_list
from vitrail.tokenizer.padding import Lengths, lengths, limit_of, pad_encoded, pad_rows

if TYPE_CHECKING:
    from vitrail.responses.events import Response

_CHAT_OPTIONS = (
    "add_generation_prompt",
    "continue_final_message",
    "tools",
    "documents",
    "return_assistant_tokens_mask",
)


@checked
class BaseTokenizer:
    """The methods that do not depend on how a text is encoded."""

    default_format: ClassVar[str | None] = None
    """The format of prompts where there is no chat template; None: a template is needed."""
    needs_image_tokens: ClassVar[bool] = True
    """Whether a processor refuses the tokenizer if it has no image tokens."""
    no_padding: ClassVar[str] = (
        "padding needs a pad token and this tokenizer has none; set tokenizer.pad_token first"
    )
    """The error where rows are to be padded and there is no pad token."""

    model_max_length: int
    padding_side: str
    truncation_side: str
    model_input_names: list[str]

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> BatchFeature:
        """Encode texts and prompts to input_ids and attention_mask."""
        raise NotImplementedError

    @property
    def encoder(self) -> Encoder:
        """Encoder of the built-in prompt formats."""
        raise NotImplementedError

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The names of all control tokens."""
        raise NotImplementedError

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Name → text of the special tokens that are set: "bos_token" → "<s>"."""
        raise NotImplementedError

    def prompt_format(self) -> Format:
        """Return the built-in format of the tokenizer."""
        raise NotImplementedError

    def find_token(self, name: str) -> int | None:
        """Return the id of a token; None if there is none of this name."""
        raise NotImplementedError

    def read_prompt(self, text: str | RenderedPrompt, image_token: str = IMAGE) -> RenderedPrompt:
        """Return a rendered prompt, or a text of one author, in the form that this tokenizer encodes."""
        return as_prompt(text)

    def encode_prompt(self, prompt: str | RenderedPrompt, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a prompt; only control tokens of its template or format become control ids."""
        ids: list[int] = self(as_prompt(prompt), add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def prompt_limit(
        self, *, padding: Any = False, truncation: Any = None, max_length: int | None = None
    ) -> int | None:
        """Return the most ids after bos that a call with these options leaves for a prompt; None: unlimited."""
        return limit_of(self._plan(padding, truncation, max_length, None, None))

    def render_chat(
        self,
        conversation: Any,
        own: ChatTemplate | None,
        asked: str | None,
        image_tokens: Sequence[str],
        /,
        **options: Any,
    ) -> Chat:
        """Render the prompts of one conversation or a list of them, by a chat template or a built-in format.

        Args:
            own: the caller's template.
            asked: name or source of another template.
            image_tokens: tokens that the template may write beside the control tokens.
            options: format, and those of build_chat() or of the template.
        """
        default = self.default_format if own is None and asked is None else None
        format = options.pop("format", None) or default
        if format is not None:
            if asked is not None:
                raise InputError("give format or chat_template, not both")
            options.setdefault("mode", getattr(self, "mode", "test"))
            return build_chat(conversation, choose_format(format, self.prompt_format), self.encoder, options)
        given = {name: options.pop(name) for name in _CHAT_OPTIONS if name in options}
        controls = tuple(dict.fromkeys((*self.control_tokens, *image_tokens)))
        return render_chat(
            conversation,
            choose_template(own, asked, given.get("tools"), controls),
            controls=controls,
            special_tokens=self.special_tokens_map,
            variables=options,
            **given,
        )

    def parse_response(self, ids: Any, **options: Any) -> Response:
        """Parse the ids of a model's answer into text, reasoning and tool calls (docs/tools.md).

        Args:
            ids: the new ids, without the prompt.
            options: those of `ResponseParser`.
        """
        from vitrail.responses.parser import parse_response

        return parse_response(self, ids, **options)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of one sequence of ids."""
        raise NotImplementedError

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the texts of several sequences of ids: a tensor (B, T), or a list of inputs of `decode`."""
        refuse_unknown("batch_decode", kwargs)
        rows = to_list(sequences)
        check("batch_decode", "sequences", rows, list)
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in rows]

    def pad(
        self,
        encoded_inputs: Any,
        padding: Any = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        verbose: bool = True,
    ) -> BatchFeature:
        """Pad earlier output of this tokenizer: a dict of rows, a list of dicts, or one row."""
        plan = self._plan(padding, False, max_length, pad_to_multiple_of, padding_side)
        mask = self._wants("attention_mask", return_attention_mask)
        return pad_encoded(
            encoded_inputs, plan, self._pads(), return_attention_mask=mask, return_tensors=return_tensors
        )

    def _plan(
        self, padding: Any, truncation: Any, max_length: int | None, multiple: int | None, side: str | None
    ) -> Lengths:
        plan = lengths(
            padding,
            truncation,
            max_length,
            self.model_max_length,
            pad_to_multiple_of=multiple,
            side=self.padding_side if side is None else side,
        )
        if plan.pad is not None and "input_ids" not in self._pads():
            raise InputError(self.no_padding)
        return plan

    def _pads(self) -> dict[str, int]:
        """Return column name → pad value; without input_ids where there is no pad token."""
        pad: int | None = getattr(self, "pad_token_id", None)
        fixed = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1, "assistant_masks": 0}
        return fixed if pad is None else {"input_ids": pad, **fixed}

    def _wants(self, name: str, asked: bool | None) -> bool:
        """Return whether a call returns a column: by the argument, else by `model_input_names`."""
        return name in self.model_input_names if asked is None else asked

    def _padded(
        self,
        columns: Mapping[str, Sequence[Sequence[int]]],
        plan: Lengths,
        *,
        single: bool,
        return_tensors: Any,
        return_length: bool,
        count_padding: bool = True,
    ) -> BatchFeature:
        """Return the padded columns of a call, with `length` on request; a single row for a single text."""
        out: dict[str, Any] = pad_rows(columns, plan, self._pads())
        if return_length:
            out["length"] = [len(row) for row in (out if count_padding else columns)["input_ids"]]
        if single and check_tensor_type(return_tensors) is None:
            out = {name: column[0] for name, column in out.items()}
        return BatchFeature(out, return_tensors)


def refuse_unknown(owner: str, kwargs: Mapping[str, Any]) -> None:
    """Raise InputError for keywords that `owner` does not have."""
    if kwargs:
        raise InputError(f"{owner} has no arguments {', '.join(sorted(kwargs))}")
