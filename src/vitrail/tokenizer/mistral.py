"""MistralCommonTokenizer: tekken.json and *.model.v* files through mistral-common."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitrail.arguments import check, checked
from vitrail.errors import CheckpointError, InputError, PromptError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.replacing import replacing
from vitrail.files.token_ids import version_of
from vitrail.files.writing import prepare_folder
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.request import image_request
from vitrail.prompts.builtin import BuiltPrompt, Format, build_prompt
from vitrail.prompts.builtin.encode_chat import AUTO, build_chat, choose_format, encode_built, fit_text
from vitrail.prompts.builtin.pieces import IMAGE
from vitrail.prompts.builtin.trusted import read_trusted
from vitrail.prompts.messages import Message, normalize_batch
from vitrail.prompts.render import check_answer_mask
from vitrail.prompts.rendered_prompt import RenderedPrompt, as_prompt, opened
from vitrail.responses.ids import to_ids
from vitrail.tokenizer.base import refuse_unknown
from vitrail.tokenizer.image_prompts import ImagePromptEncoder
from vitrail.tokenizer.mistral_bridge import explained, open_tokenizer, openai_message, stack_images
from vitrail.tokenizer.mistral_encoder import MistralEncoder, format_of_file
from vitrail.tokenizer.mistral_rows import MistralRows
from vitrail.tokenizer.padding import VERY_LARGE, Lengths, check_side, limit_of, whole_length

_NEEDLESS = ("add_generation_prompt", "format", "reasoning_effort", "return_assistant_tokens_mask")
_SENTENCEPIECE = re.compile(r".*\.model(\.v\d+(m\d+)?)?")


@checked
class MistralCommonTokenizer(MistralRows):
    """Mistral's own tokenizers and chat formats, with the methods of transformers' class of this name.

    Text is never scanned for control tokens: a typed "[INST]" is text. Differences from transformers:
    `convert_tokens_to_ids` finds control tokens and returns the ids of `encode`; a missing pad token is None;
    images are opened by `load_image`, within its limits, and returned with their `image_sizes`.
    """

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012 - a default, as in transformers
    padding_side: str = "left"
    truncation_side: str = "right"
    default_format: ClassVar[str | None] = AUTO  # of the prompts: that of the tokenizer's own file
    needs_image_tokens: ClassVar[bool] = False  # some files have no images
    no_padding: ClassVar[str] = (
        "padding needs a pad token, and sentencepiece files have none; encode one text at a time"
    )

    def __init__(
        self,
        tokenizer_path: str | os.PathLike[str],
        mode: Any = "test",
        model_max_length: int = VERY_LARGE,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: list[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        """Open a file of mistral-common.

        Args:
            tokenizer_path: tekken.json or *.model.v*.
            mode: strictness of the validation of conversations.

        Raises:
            CheckpointError: the file is missing or damaged.
            MissingPackageError: mistral-common or sentencepiece is not installed.
        """
        refuse_unknown("MistralCommonTokenizer", kwargs)
        self._tokenizer_path = Path(tokenizer_path)
        self.tokenizer = open_tokenizer(self._tokenizer_path, mode)
        self.mode = str(getattr(mode, "value", mode))
        self.model_max_length = whole_length(model_max_length)
        self.padding_side = check_side(padding_side, "padding_side")
        self.truncation_side = check_side(truncation_side, "truncation_side")
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        if model_input_names is not None:
            if not model_input_names or not all(isinstance(name, str) for name in model_input_names):
                raise InputError("model_input_names is a list of names, not an empty one")
            self.model_input_names = list(model_input_names)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: Any,
        mode: Any = "test",
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        model_max_length: int = VERY_LARGE,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: list[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> MistralCommonTokenizer:
        """Load the tokenizer of a folder or of a hub model: tekken.json, else the latest *.model.v* file.

        Args:
            format: "hf" or "mistral": the format whose configuration is fetched from a repository with both.
        """
        format = kwargs.pop("format", None)
        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        refuse_unknown("from_pretrained", {**kwargs, **({"init_inputs": init_inputs} if init_inputs else {})})
        folder = CheckpointFolder.open(pretrained_model_name_or_path, hub, format=format)
        found = tokenizer_files(folder)
        if not found:
            folder.refuse_adapter()
            raise CheckpointError(
                f"{folder} has no tokenizer of mistral-common: neither tekken.json nor *.model.v*"
            )
        return cls(
            found[-1],
            mode=mode,
            model_max_length=model_max_length,
            padding_side=padding_side,
            truncation_side=truncation_side,
            model_input_names=model_input_names,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )

    def __call__(
        self,
        text: Any = None,
        text_pair: None = None,
        text_target: None = None,
        text_pair_target: None = None,
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
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode a text, a list of texts, or ids.

        Args:
            text: a text, a prompt, a list of them, or ids.
            add_special_tokens: add bos and eos, as transformers' class does.

        Returns:
            input_ids, attention_mask and the other columns on request.

        Raises:
            InputError: unknown arguments, or an item that is neither text nor ids.
            UnsupportedError: an argument that is not supported.
        """
        refuse_unknown("MistralCommonTokenizer", kwargs)
        given: dict[str, Any] = {
            "text_pair": text_pair,
            "text_target": text_target,
            "text_pair_target": text_pair_target,
        }
        given |= {"stride": stride, "return_overflowing_tokens": return_overflowing_tokens}
        if refused := [name for name, value in given.items() if value]:
            raise UnsupportedError(f"{', '.join(refused)}: this tokenizer does not do that")
        single = isinstance(text, (str, RenderedPrompt)) or (
            isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], int)
        )
        texts = [text] if single else text
        if not isinstance(texts, (list, tuple)):
            raise InputError(f"expected a text, ids, or a list of them; got {type(text).__name__}")
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of, padding_side)
        made = [self._row(item, add_special_tokens, plan) for item in texts]
        rows = [ids for ids, _ in made]
        columns: dict[str, list[list[int]]] = {"input_ids": rows}
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [
                self.get_special_tokens_mask(row) if add_special_tokens else [0] * len(row) for row in rows
            ]
        if self._wants("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        if any(isinstance(item, RenderedPrompt) and item.marks_answers for item in map(opened, texts)):
            columns["assistant_masks"] = [answers for _, answers in made]
        return self._padded(
            columns,
            plan,
            single=single,
            return_tensors=return_tensors,
            return_length=return_length,
            count_padding=single,  # as transformers' class
        )

    def encode(
        self,
        text: str | list[int],
        text_pair: None = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        verbose: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the ids of one text: a list, or a tensor (1, T) with `return_tensors`."""
        refuse_unknown("encode", kwargs)
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=False,
        )["input_ids"]

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of one sequence of ids: a list, an array, a tensor or one id."""
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        from vitrail.tokenizer.vocabulary import clean_up

        refuse_unknown("decode", kwargs)
        ids = to_ids(token_ids)
        self._check_ids(ids)
        policy = SpecialTokenPolicy.IGNORE if skip_special_tokens else SpecialTokenPolicy.KEEP
        text = str(self.tokenizer.decode(ids, special_token_policy=policy))
        return clean_up(text) if clean_up_tokenization_spaces or self.clean_up_tokenization_spaces else text

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the tokens of one text, as strings."""
        refuse_unknown("tokenize", kwargs)
        tokens: list[str] = self.convert_ids_to_tokens(self._ids(text, add_special_tokens=False))
        return tokens

    @image_request()
    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a list of them to ids, a dict with the images (`return_dict`), or text.

        Args:
            tokenize: False returns text; with `format` it is a prompt that a PixtralProcessor encodes unchanged.
            truncation: drop the oldest messages, with a warning that names them; transformers' class cuts ids off the
                end. The prompt comes from Vitrail's own builder then.
            return_dict: the dict holds pixel_values (N, 3, H, W), padded with zeros, and image_sizes (N, 2).
            kwargs: `format`, the prompt format of Vitrail's own builder: a name, or "auto" for that of the file
                (docs/prompts.md); `reasoning_effort`, and `return_assistant_tokens_mask` for `assistant_masks`, 1 for
                ids of the assistant's messages, both by the builder.

        Raises:
            PromptError: the format does not allow the conversation.
        """
        check("apply_chat_template", "tools", tools, list[dict[str, Any]] | None)
        if not isinstance(truncation, bool):
            raise InputError(f"truncation is True or False here; got {truncation!r}")
        marked = kwargs.get("return_assistant_tokens_mask", False) or None
        check_answer_mask(bool(marked), tokenize, return_dict, continue_final_message)
        asked = (
            kwargs.get("format"),
            kwargs.get("reasoning_effort"),
            (truncation and tokenize) or None,
            marked,
        )
        if any(option is not None for option in asked):
            options = {**kwargs, "tools": tools, "continue_final_message": continue_final_message}
            call = {"padding": padding, "truncation": truncation, "max_length": max_length}
            call["return_tensors"] = return_tensors
            return self._format_chat(conversation, options, call, tokenize=tokenize, return_dict=return_dict)
        refuse_unknown("apply_chat_template", {k: v for k, v in kwargs.items() if k not in _NEEDLESS})
        conversations, batched = normalize_batch(conversation)
        encoded = [self._encode_chat(messages, tools, continue_final_message) for messages in conversations]
        if not tokenize:
            texts = [self.decode(one.tokens) for one in encoded]
            return texts if batched else texts[0]
        rows = [list(one.tokens) for one in encoded]
        out = self(
            rows if batched else rows[0],
            padding=padding,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
        )
        if not return_dict:
            return out["input_ids"]
        images = [np.asarray(image, np.float32) for one in encoded for image in one.images]
        return BatchFeature({**out, **stack_images(images, return_tensors)})

    @cached_property
    def encoder(self) -> MistralEncoder:
        """Encoder of the built-in prompt formats."""
        return MistralEncoder(self._inner)

    @property
    def image_config(self) -> Any:
        """Image configuration of the file (image_patch_size, max_image_size, …); None for text alone."""
        instruct = self.tokenizer.instruct_tokenizer
        encoder = getattr(instruct, "image_encoder", None) or getattr(instruct, "mm_encoder", None)
        return getattr(encoder, "image_config", None) or getattr(encoder, "mm_config", None)

    def image_settings(self) -> dict[str, Any]:
        """Return the file's image "settings" and its "spatial_merge_size"; {} for text alone."""
        config = self.image_config
        if config is None:
            return {}
        side = config.image_patch_size
        settings = {
            "patch_size": {"height": side, "width": side},
            "size": {"longest_edge": config.max_image_size},
            "dialect": "mistral",
        }
        return {"settings": settings, "spatial_merge_size": getattr(config, "spatial_merge_size", 1)}

    def prompt_format(self) -> Format:
        """Return the built-in format of the tokenizer's file."""
        return format_of_file(self.tokenizer)

    def find_token(self, name: str) -> int | None:
        """Return the id of a control token; None if there is none of this name."""
        return self.encoder.find(name)

    def read_prompt(self, text: str | RenderedPrompt, image_token: str = IMAGE) -> BuiltPrompt:
        """Split a prompt into pieces at its control tokens; this tokenizer finds none in a text."""
        prompt = as_prompt(text)
        if isinstance(prompt, BuiltPrompt):
            return prompt
        return read_trusted(prompt, self.control_tokens, image_token)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        repo_id: str | None = None,
        private: bool | None = None,
        repo_url: str | None = None,
        organization: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Copy the tokenizer's file into a folder, under a name that `from_pretrained` finds."""
        if push_to_hub or any((token, commit_message, repo_id, private, repo_url, organization)):
            raise UnsupportedError(
                "push_to_hub and what belongs to it are not supported; save_pretrained is local"
            )
        refuse_unknown("save_pretrained", kwargs)
        name = "tekken.json" if self._tokenizer_path.suffix == ".json" else self._tokenizer_path.name
        folder = prepare_folder(save_directory)
        with replacing(folder) as new:
            shutil.copyfile(self._tokenizer_path, new / name)
        return (str(folder / name),)

    def _format_chat(
        self,
        conversation: Any,
        options: dict[str, Any],
        call: dict[str, Any],
        *,
        tokenize: bool,
        return_dict: bool,
    ) -> Any:
        """Run `apply_chat_template` through a built-in format. options: `build_chat`'s; call: those of `__call__`."""
        form = choose_format(options.pop("format", None) or AUTO, self.prompt_format)
        chat = build_chat(conversation, form, self.encoder, {"mode": self.mode, **options})
        if not tokenize:
            return chat.text
        if not any(chat.images):
            out = self(chat.given, **call)
            return out if return_dict else out["input_ids"]
        tensors = call.pop("return_tensors")
        made = self._image_encoder()(chat.prompts, text_options=call)
        out = BatchFeature(made, tensors).with_grids(made.grids)
        if return_dict:
            return out
        return out["input_ids"] if chat.batched or tensors is not None else out["input_ids"][0]

    def _image_encoder(self) -> ImagePromptEncoder:
        from vitrail.images.processor import PixtralImageProcessor

        found = self.image_settings()
        if not found:
            raise CheckpointError(
                "this tokenizer's file is for text alone; it does not say how images are prepared"
            )
        cell = found["settings"]["patch_size"]["height"] * found["spatial_merge_size"]
        image_processor = PixtralImageProcessor.from_dict(found["settings"])
        return ImagePromptEncoder(self, image_processor, cell, self.encoder.find(IMAGE))

    def _row(self, item: Any, add_special_tokens: bool, plan: Lengths) -> tuple[list[int], list[int]]:
        """Return the ids of an item, and the mask of the assistant's among them."""
        item = opened(item)
        if isinstance(item, RenderedPrompt):
            fitted = fit_text(self.read_prompt(item), self.encoder, limit_of(plan))
            return encode_built(fitted, self.encoder, plan.limit, self.truncation_side)
        return self._cut(self._ids(item, add_special_tokens), plan.limit), []

    def _ids(self, item: Any, add_special_tokens: bool) -> list[int]:
        if isinstance(item, str):
            with explained("this text cannot be encoded"):
                return list(self._inner.encode(item, bos=add_special_tokens, eos=add_special_tokens))
        return to_ids(item)

    def _cut(self, row: list[int], limit: int | None) -> list[int]:
        if limit is None or len(row) <= limit:
            return row
        return row[-limit:] if self.truncation_side == "left" else row[:limit]

    def _encode_chat(self, messages: Sequence[Message], tools: Any, continues: bool) -> Any:
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        plain = [openai_message(message) for message in messages]
        try:
            with explained("the format of this tokenizer refuses the conversation"):
                request = ChatCompletionRequest.from_openai(
                    plain, tools=tools, continue_final_message=continues
                )
                return self.tokenizer.encode_chat_completion(request)
        except PromptError:
            # Vitrail's builder raises for the same fault, with its place in the message.
            try:
                build_prompt(
                    messages,
                    self.prompt_format(),
                    tools=tools,
                    continue_final_message=continues,
                    mode=self.mode,
                )
            except PromptError as error:
                raise PromptError(
                    f"the format of this tokenizer refuses the conversation: {error}"
                ) from error
            raise


MistralCommonBackend = MistralCommonTokenizer  # its name in transformers 5


def tokenizer_files(folder: CheckpointFolder) -> list[Path]:
    """List the files of mistral-common in a folder, the preferred one last."""
    names = [name for name in folder.files if _SENTENCEPIECE.fullmatch(name) or name == "tekken.json"]
    names.sort(key=lambda name: (name == "tekken.json", version_of(name), name))
    return [folder.path / name for name in names]
