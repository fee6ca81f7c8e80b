"""FastTokenizer: text ↔ ids through the `tokenizers` library, with transformers' interface."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitrail.arguments import check_methods, checked
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.keywords import without_secrets
from vitrail.files.replacing import replacing
from vitrail.files.writing import prepare_folder, write_json, write_text
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.request import image_request
from vitrail.prompts.builtin import BuiltPrompt, Format
from vitrail.prompts.builtin.encode_chat import encode_built, fit_text
from vitrail.prompts.render import check_answer_mask, choose_template, newer_chat_options
from vitrail.prompts.rendered_prompt import RenderedPrompt, opened
from vitrail.prompts.template_files import TEMPLATE_FILE, find_chat_template, save_chat_template
from vitrail.responses.ids import to_ids
from vitrail.tokenizer.backend import (
    LLAMA_CLASSES,
    declare_tokens,
    follow_llama_flags,
    read_backend,
    token_ids_of,
)
from vitrail.tokenizer.base import BaseTokenizer
from vitrail.tokenizer.config_file import read_tokenizer_config
from vitrail.tokenizer.escaping import EscapingCopy, Row, encode_cut
from vitrail.tokenizer.json_encoder import JsonEncoder, format_of_controls
from vitrail.tokenizer.mistral_regex import repair_regex
from vitrail.tokenizer.options import drop_secrets, take_options
from vitrail.tokenizer.padding import VERY_LARGE, Lengths, check_side, limit_of, whole_length
from vitrail.tokenizer.safety import no_panic
from vitrail.tokenizer.special_tokens import NAMES, read_additional, read_named, setting
from vitrail.tokenizer.vocabulary import Vocabulary, clean_up


@checked
class FastTokenizer(Vocabulary, BaseTokenizer):
    """A tokenizer.json with the methods of transformers' fast tokenizers.

    Differences: token_type_ids are returned only if the folder's tokenizer_config.json lists them, an unknown argument
    raises, and `apply_chat_template` never turns typed text into a control token (prompts/rendered_prompt.py).
    """

    def __init__(self, tokenizer_object: Any, chat_template: Any = None, **config: Any) -> None:
        """Take over a backend and its configuration.

        Args:
            tokenizer_object: a `tokenizers.Tokenizer`.
            chat_template: source of the template, or name → source.
            config: entries of a tokenizer_config.json.
        """
        check_methods("tokenizer_object", tokenizer_object, "encode_batch", "no_padding")
        self._tokenizer = tokenizer_object
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.init_kwargs: dict[str, Any] = config
        llama = config.get("tokenizer_class") in LLAMA_CLASSES
        self.fix_mistral_regex = bool(config.get("fix_mistral_regex", False))
        self.chat_template = chat_template if chat_template is not None else config.get("chat_template")
        self.model_max_length = whole_length(setting(config, "model_max_length", (int, float), VERY_LARGE))
        side = config.get("padding_side") or ("left" if llama else "right")
        self.padding_side = check_side(side, "padding_side")
        self.truncation_side = check_side(config.get("truncation_side") or "right", "truncation_side")
        names = setting(config, "model_input_names", (list, tuple), ("input_ids", "attention_mask"))
        if not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"tokenizer_config.json: model_input_names must be texts; got {names!r}")
        self.model_input_names = list(names)
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", False))
        self.named_tokens = read_named(config)
        self.additional_special_tokens = read_additional(config)
        declare_tokens(tokenizer_object, config.get("added_tokens_decoder") or {}, self.all_special_tokens)
        if llama:
            follow_llama_flags(tokenizer_object, config)
        self._copies: list[EscapingCopy] = []
        self._encoder: JsonEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        format: str | None = None,
        **config: Any,
    ) -> FastTokenizer:
        """Load the tokenizer of a folder or of a hub model.

        Args:
            format: "hf" or "mistral": whose configuration is fetched from a repository with both; see AutoConfig.
            config: overrides of tokenizer_config.json. `fix_mistral_regex=True` repairs a file whose pre-tokenizer
                rule is not Mistral's; without it such a file only gives a warning.

        Raises:
            CheckpointError: a file is missing or damaged.
            InputError: unknown keywords.
        """
        hub = HubOptions.take(
            config,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        folder = CheckpointFolder.open(pretrained_model_name_or_path, hub, format=format)
        stored = drop_secrets(read_tokenizer_config(folder))
        config = take_options(config, stored, cls.__name__)
        template = config.pop("chat_template", None) or find_chat_template(folder, stored)
        stored.pop("chat_template", None)
        file = folder.path / "tokenizer.json"
        backend = read_backend(file)
        folder.keep_token_ids(token_ids_of(backend, file))
        asked = config.pop("fix_mistral_regex", None)
        fixed = repair_regex(backend, str(file), asked, stored.get("fix_mistral_regex"))
        if asked is not None or fixed is not None:
            config["fix_mistral_regex"] = asked if fixed is None else fixed
        return cls(backend, template, **{**stored, **config})

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode a text or a list of texts.

        Args:
            text: a text, a prompt or a list of them; with `is_split_into_words` a list of words is one text.
            return_tensors: "pt" or "np" for tensors (B, T); None for lists.

        Returns:
            input_ids, attention_mask and the other columns on request.

        Raises:
            InputError: an item is no text.
            UnsupportedError: an argument that is not supported.
        """
        refused = {"text_target": text_target, "text_pair_target": text_pair_target, "stride": stride}
        _refuse({**refused, "return_overflowing_tokens": return_overflowing_tokens}, kwargs)
        single = isinstance(text, (str, RenderedPrompt)) or (
            is_split_into_words and bool(text) and isinstance(text[0], str)
        )
        texts = _batch(text, text_pair, single)
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of, padding_side)
        encodings = self._encode(texts, add_special_tokens, plan, is_split_into_words)
        if return_offsets_mapping and not all(encoding.offsets for encoding in encodings if encoding.ids):
            raise UnsupportedError("return_offsets_mapping: prompts of built-in formats have no offsets")
        wanted = {
            "ids": True,
            "type_ids": self._wants("token_type_ids", return_token_type_ids),
            "attention_mask": self._wants("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offsets": return_offsets_mapping,
            "answers": any(isinstance(text, RenderedPrompt) and text.marks_answers for text in texts),
        }
        renamed = {"ids": "input_ids", "type_ids": "token_type_ids", "offsets": "offset_mapping"}
        renamed["answers"] = "assistant_masks"
        columns = {
            renamed.get(name, name): [getattr(encoding, name) for encoding in encodings]
            for name, is_wanted in wanted.items()
            if is_wanted
        }
        return self._padded(
            columns, plan, single=single, return_tensors=return_tensors, return_length=return_length
        )

    def encode(
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """Return the ids of one text: a list, or a tensor (1, T) with `return_tensors`. Options as `__call__`."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of one text, as strings of the vocabulary."""
        plan = self._plan(False, False, None, None, None)
        return self._encode(_batch(text, pair, True), add_special_tokens, plan, False)[0].tokens

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of one sequence of ids: a list, an array, a tensor or one id."""
        _refuse({}, kwargs)
        try:
            with no_panic("these ids cannot be decoded"):
                text: str = self._tokenizer.decode(
                    to_ids(token_ids), skip_special_tokens=bool(skip_special_tokens)
                )
        except OverflowError as error:
            raise InputError(f"ids must be below 2**32: {error}") from error
        clean = clean_up_tokenization_spaces
        return clean_up(text) if (self.clean_up_tokenization_spaces if clean is None else clean) else text

    @image_request()
    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a list of them, and encode the prompts.

        Args:
            tokenize: False returns text instead of ids.
            return_dict: return a dict with the attention mask instead of the ids alone.
            return_assistant_tokens_mask: add `assistant_masks`: 1 for ids in the template's `{% generation %}` blocks,
                or for those of an assistant's messages in a built-in format.
            kwargs: `format`, a Mistral prompt format by name or "auto" in place of the template (docs/prompts.md);
                the others go to the template, which must read them.

        Control tokens in the text of a message stay text.
        """
        kwargs = newer_chat_options(kwargs)
        if return_dict and not tokenize:
            raise InputError("return_dict=True needs tokenize=True: there is no dict of ids to return")
        check_answer_mask(return_assistant_tokens_mask, tokenize, return_dict, continue_final_message)
        options = {
            "tools": tools,
            "documents": documents,
            "continue_final_message": continue_final_message,
            "return_assistant_tokens_mask": return_assistant_tokens_mask,
            **kwargs,
        }
        options["add_generation_prompt"] = add_generation_prompt
        chat = self.render_chat(conversation, self.chat_template, chat_template, (), **options)
        if not tokenize:
            return chat.text
        own = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        options = {"add_special_tokens": False, **own, **(tokenizer_kwargs or {})}
        encoded = self(chat.given, **options)
        return encoded if return_dict else encoded["input_ids"]

    @property
    def encoder(self) -> JsonEncoder:
        """Encoder of the built-in formats: a copy of the tokenizer that encodes control tokens as text."""
        if self._encoder is None:
            named = {"<s>": self.bos_token or "", "</s>": self.eos_token or ""}
            self._encoder = JsonEncoder(self._tokenizer, named)
        return self._encoder

    def prompt_format(self) -> Format:
        """Return the built-in format that fits the control tokens.

        Raises:
            PromptError: several formats fit.
        """
        return format_of_controls(self.encoder)

    def find_token(self, name: str) -> int | None:
        """Return the id of a token; None if there is none of this name."""
        index = self.convert_tokens_to_ids(name)
        missing = index is None or (index == self.unk_token_id and name != self.unk_token)
        return None if missing else int(index)

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Return the source of the template in use. Raises PromptError if there is none."""
        return choose_template(self.chat_template, chat_template, tools, self.control_tokens)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and the chat template, readable by transformers 4.57 and 5.x."""
        _refuse({}, kwargs)
        state = {
            "tokenizer_class": self._saved_class(),
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_input_names": self.model_input_names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            **self.special_tokens_map,
        }
        dropped = {"added_tokens_decoder", "extra_special_tokens", "backend", "chat_template", *NAMES}
        kept = without_secrets({n: value for n, value in self.init_kwargs.items() if n not in dropped})
        folder = prepare_folder(save_directory)
        with replacing(folder, optional=(TEMPLATE_FILE,)) as new:
            written = [
                write_text(new / "tokenizer.json", self._tokenizer.to_str(pretty=True)),
                write_json(new / "tokenizer_config.json", {**kept, **state}),
                *save_chat_template(new, self.chat_template),
            ]
        return tuple(str(folder / file.relative_to(new)) for file in written)

    def _vocabulary_changed(self) -> None:
        self._copies.clear()
        self._encoder = None

    def _saved_class(self) -> str:
        stored = str(self.init_kwargs.get("tokenizer_class") or "")
        return stored if stored.endswith("Fast") or stored in LLAMA_CLASSES else "PreTrainedTokenizerFast"

    def _encode(self, texts: Sequence[Any], special: bool, plan: Lengths, words: bool) -> list[Row]:
        """Encode a batch of texts, prompts, pairs or lists of words."""
        if plan.limit is not None and any(isinstance(text, tuple) for text in texts):
            raise UnsupportedError("truncation of pairs of texts is not supported")
        scanned = [text.scanned_text if isinstance(text, RenderedPrompt) else text for text in texts]
        side = self.truncation_side
        try:
            encodings = encode_cut(self._tokenizer, scanned, special, plan.limit, side, words)
        except (TypeError, UnicodeEncodeError) as error:  # the library's errors for anything but text
            raise InputError(
                f"expected a text or a list of texts, all of them valid Unicode: {error}"
            ) from error
        rows = [Row.of(encoding) for encoding in encodings]
        return [
            self._prompt_row(text, row, special, plan) if isinstance(text, RenderedPrompt) else row
            for text, row in zip(texts, rows, strict=True)
        ]

    def _prompt_row(self, prompt: RenderedPrompt, row: Row, special: bool, plan: Lengths) -> Row:
        """Return the row of a prompt. row: that of its text, with every control token as a control."""
        if isinstance(prompt, BuiltPrompt):
            fitted = fit_text(prompt, self.encoder, limit_of(plan))
            return self._built_row(*encode_built(fitted, self.encoder, plan.limit, self.truncation_side))
        found = row if prompt.is_trusted else self._escaped(prompt, row, special, plan)
        return replace(found, answers=prompt.answer_mask(found.offsets)) if prompt.marks_answers else found

    def _escaped(self, prompt: RenderedPrompt, row: Row, special: bool, plan: Lengths) -> Row:
        """Return the row with typed control tokens as text."""
        added = sorted(self.added_tokens_decoder.items())
        controls = {index: token.content for index, token in added if token.special}
        typed = prompt.holds_typed_controls(tuple(controls.values()))
        if not typed and not _reads_more(prompt, row, controls.keys() - {self.unk_token_id}):
            return row
        copy = EscapingCopy.for_text(self._tokenizer, prompt.text, self._copies)
        return copy.encode(prompt, special, plan.limit, self.truncation_side)

    def _built_row(self, ids: list[int], answers: list[int]) -> Row:
        controls = {index for index, token in self.added_tokens_decoder.items() if token.special}
        special = [int(index in controls) for index in ids]
        tokens: list[str] = self.convert_ids_to_tokens(ids)
        return Row(ids, [0] * len(ids), [1] * len(ids), special, [], tokens, answers)


def _reads_more(prompt: RenderedPrompt, row: Row, controls: Collection[int]) -> bool:
    """Return whether the ids hold more control tokens than the template wrote (by a lower-casing normaliser, say)."""
    found = sum(i in controls for i, added in zip(row.ids, row.special_tokens_mask, strict=True) if not added)
    return found > prompt.own_controls


def _batch(text: Any, pair: Any, single: bool) -> list[Any]:
    """Return texts, or (text, pair) tuples, as a list."""
    texts = [text] if single else text
    if not isinstance(texts, (list, tuple)) or (
        not single and not all(isinstance(t, (str, list, RenderedPrompt)) for t in texts)
    ):
        raise InputError(f"expected a text or a list of texts, got {type(text).__name__}")
    if pair is None:
        return [opened(item) for item in texts]
    pairs = [pair] if single else pair
    if not isinstance(pairs, (list, tuple)) or len(pairs) != len(texts):
        raise InputError("text_pair must be given for every text")
    return list(zip(texts, pairs, strict=True))


def _refuse(arguments: Mapping[str, Any], unknown: Iterable[str]) -> None:
    """Raise UnsupportedError for unsupported arguments that are set, InputError for unknown ones."""
    if names := [name for name, value in arguments.items() if value]:
        raise UnsupportedError(f"{', '.join(names)}: this tokenizer does not do that")
    if names := list(unknown):
        raise InputError(f"unknown arguments: {', '.join(names)}")
