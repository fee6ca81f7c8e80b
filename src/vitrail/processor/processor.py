"""PixtralProcessor: text and images → one batch for the model, ids → text. Folders are read in load.py."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.arguments import check, checked
from vitrail.configs.fields import check_cell, check_field
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.replacing import replacing
from vitrail.files.writing import prepare_folder, write_json, write_text
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.grid import Grid, image_grid
from vitrail.images.request import image_request
from vitrail.prompts.render import Chat, check_answer_mask, newer_chat_options
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.prompts.template_files import TEMPLATE_FILE, ChatTemplate, save_chat_template
from vitrail.responses.ids import to_list
from vitrail.tokenizer.base import BaseTokenizer
from vitrail.tokenizer.image_prompts import ImagePromptEncoder

if TYPE_CHECKING:
    from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast
    from vitrail.responses.events import Response
    from vitrail.tokenizer.fast import FastTokenizer
    from vitrail.tokenizer.mistral import MistralCommonTokenizer

# Set by the processor only; a call takes the other options of the image processor and the tokenizer.
_DECIDED = frozenset(
    {"self", "text", "text_pair", "images", "patch_size", "kwargs", "return_tensors", "verbose"}
)
_ANSWER_MASK = ("return_assistant_tokens_mask", "continue_final_message")
_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")


@checked
class PixtralProcessor:
    """A tokenizer and an image processor in one, for Pixtral and Mistral 3 checkpoints.

    Args:
        image_processor: required.
        tokenizer: required.
        patch_size: side of the vision tower's patches in pixels.
        spatial_merge_size: patches per token along each side.
        chat_template: None for the tokenizer's own.
        image_token: stands for an image in a text; its id, like the next two, is that of the tokenizer.
        image_break_token: ends each row of an image but the last.
        image_end_token: ends the last row.
    """

    attributes = ("image_processor", "tokenizer")

    def __init__(
        self,
        image_processor: PixtralImageProcessor | PixtralImageProcessorFast | None = None,
        tokenizer: FastTokenizer | MistralCommonTokenizer | None = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: ChatTemplate | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise InputError(f"PixtralProcessor has no arguments {', '.join(sorted(kwargs))}")
        if image_processor is None or tokenizer is None:
            raise InputError("PixtralProcessor needs an image_processor and a tokenizer")
        if not isinstance(tokenizer, BaseTokenizer):
            raise UnsupportedError(
                f"PixtralProcessor reads prompts as text with Vitrail's own tokenizers; got {type(tokenizer).__name__}"
            )
        for name, number in (("patch_size", patch_size), ("spatial_merge_size", spatial_merge_size)):
            check_field("PixtralProcessor", name, number, int, minimum=1)
        check_cell("PixtralProcessor", patch_size, spatial_merge_size)
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        own = getattr(tokenizer, "chat_template", None)  # tokenizers of mistral-common have formats instead
        self.chat_template: ChatTemplate | None = own if chat_template is None else chat_template
        self.image_token = image_token
        self.image_break_token = image_break_token
        self.image_end_token = image_end_token
        self.image_token_id = self._look_up(image_token)
        self.image_break_token_id = self._look_up(image_break_token)
        self.image_end_token_id = self._look_up(image_end_token)
        ids = (self.image_token_id, self.image_break_token_id, self.image_end_token_id)
        self.image_ids = [index for index in ids if index is not None]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> PixtralProcessor:
        """Load the processor of a folder or of a hub model, in the layout of transformers 4.x or 5.x.

        tekken.json and *.model.v* come before tokenizer.json. A folder in Mistral's own format prepares images in the
        "mistral" dialect unless its preprocessor_config.json names another.

        Args:
            kwargs: use_fast=True for the image processor on tensors, False for the one on PIL images, else as the
                folder; tokenizer_mode="hf" for tokenizer.json first; format="mistral" for Mistral's own format in a
                folder with both; others override the processor's arguments and the tokenizer's configuration.

        Raises:
            CheckpointError: a file is missing or does not belong to the others.
            InputError: unknown keywords.
        """
        from vitrail.processor.load import read_processor

        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        folder = CheckpointFolder.open(pretrained_model_name_or_path, hub, format=kwargs.get("format"))
        return cls(**read_processor(folder, kwargs))

    @image_request()
    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        audio: Any = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode texts and their images.

        Args:
            images: one, a list, or a list of lists (one per text) of anything that `load_image` opens.
            text: one or a list; each `image_token` in it stands for the next image.
            kwargs: keywords of the tokenizer's and the image processor's calls, flat or as text_kwargs, images_kwargs
                and common_kwargs. return_tensors is "pt" by default. max_image_tokens: the most ids per image; larger
                images are shrunk.

        Returns:
            input_ids and attention_mask (B, T), pixel_values (N, 3, H, W), image_sizes (N, 2).

        Raises:
            InputError: the numbers of images and image tokens differ, or unknown keywords.
        """
        if audio is not None or videos is not None:
            raise UnsupportedError("PixtralProcessor reads text and images; it does not do audio or videos")
        if kwargs.get("is_split_into_words"):
            raise UnsupportedError("PixtralProcessor does not do is_split_into_words; its tokenizer does")
        if text is None and images is None:
            raise InputError("give text, images or both")
        text_options, image_options, tensors = self._sort_options(kwargs)
        with_types = text_options.pop("return_mm_token_type_ids", False)
        texts = [] if text is None else _as_texts(text)
        marked = self.image_ids if with_types else ()
        return self._encoder(texts, images, text_options, image_options, marked).convert_to_tensors(tensors)

    @image_request()
    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render one conversation or a list of them to the prompt, or encode it with its images (`tokenize=True`).

        Images are opened from their sources in the messages. Control tokens in the text of a message stay text.

        Args:
            chat_template: a template in place of the processor's own.
            kwargs: add_generation_prompt, continue_final_message, tools, documents, tokenize; return_dict (False: the
                ids alone); return_assistant_tokens_mask (adds `assistant_masks`: 1 for ids in the template's
                `{% generation %}` blocks, or for those of an assistant's messages in a built-in format); the keywords
                of `__call__` and the variables of the template; format, a Mistral prompt format by name or "auto" in
                place of the template (docs/prompts.md), the default for a tokenizer of mistral-common without a template.

        Raises:
            PromptError: a fault in a conversation, with its place.
        """
        kwargs = newer_chat_options(kwargs)
        tokenize, return_dict = kwargs.pop("tokenize", False), kwargs.pop("return_dict", False)
        marked, continued = (kwargs.get(name, False) for name in _ANSWER_MASK)
        check_answer_mask(marked, tokenize, return_dict, continued)
        known = self._call_names()
        call_options = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
        if not tokenize and (call_options or return_dict):
            raise InputError(
                f"{', '.join(call_options) or 'return_dict'}: needs tokenize=True; a prompt is text"
            )
        chat = self.render_chat(conversation, chat_template, **kwargs)
        if not tokenize:
            return chat.text
        if self._begins(chat.prompts[0]):
            call_options["add_special_tokens"] = False
        sources = [[part.source for part in parts if part.source is not None] for parts in chat.images]
        out = self(text=chat.given, images=sources if any(sources) else None, **call_options)
        return out if return_dict else out["input_ids"]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the text of one sequence of ids; arguments as the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Return the texts of several sequences of ids; arguments as the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def parse_response(self, ids: Any, **options: Any) -> Response:
        """Parse the new ids of `generate` into text, reasoning and tool calls; options as `ResponseParser`."""
        return self.tokenizer.parse_response(ids, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Return the texts of the output of `generate`."""
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        """The names of the model's inputs in the result of a call."""
        names = (*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes")
        return list(dict.fromkeys(names))

    def num_image_tokens(self, height: int, width: int, max_image_tokens: int | None = None) -> int:
        """Return the number of ids of an image of (height, width) pixels: image, break and end tokens."""
        return self.image_grid(height, width, max_image_tokens).tokens

    def image_grid(self, height: int, width: int, max_image_tokens: int | None = None) -> Grid:
        """Return the grid of an image of (height, width) pixels: its resized size, its rows and columns of tokens."""
        options = self.image_processor.grid_options(self.patch_size, self.spatial_merge_size)
        if max_image_tokens:
            options["max_image_tokens"] = max_image_tokens
        return image_grid(height, width, **options)

    def image_token_counts(self, batch: Mapping[str, Any]) -> list[int]:
        """Return the number of ids of each image in a batch of this processor: image, break and end tokens."""
        grids: Sequence[Grid] = getattr(batch, "grids", ())
        if not grids and "image_sizes" in batch:  # a plain dict, or a merged batch
            cell = self.patch_size * self.spatial_merge_size
            grids = [Grid.of_size(height, width, cell) for height, width in to_list(batch["image_sizes"])]
        return [grid.tokens for grid in grids]

    def prepare_images(self, images: Any, **options: Any) -> BatchFeature:
        """Return pixel_values and image_sizes as tensors, with the images' grids; options as the image processor's."""
        made = self._encoder.prepare(images, options)
        for grid in made.grids:
            grid.check_whole(self.patch_size * self.spatial_merge_size)
        return made

    def encode_prompts(self, prompts: Sequence[RenderedPrompt], grids: Sequence[Grid]) -> BatchFeature:
        """Encode prompts of `render_chat` with prepared images, given as grids, to input_ids and attention_mask."""
        encoder = self._encoder
        read = [self.tokenizer.read_prompt(prompt, self.image_token) for prompt in prompts]
        options = {"add_special_tokens": False} if self._begins(prompts[0]) else {}
        return encoder.encode(encoder.place(read, grids), options)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a processor_config.json in the layout of transformers 4.x."""
        return {
            "processor_class": type(self).__name__,
            "patch_size": self.patch_size,
            "spatial_merge_size": self.spatial_merge_size,
            "image_token": self.image_token,
            "image_break_token": self.image_break_token,
            "image_end_token": self.image_end_token,
        }

    def to_json_string(self) -> str:
        """Return `to_dict` as indented JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `to_json_string` to a file."""
        write_text(Path(json_file_path), self.to_json_string())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        legacy_serialization: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Write the tokenizer's files, preprocessor_config.json, processor_config.json and the chat template.

        This is the layout of transformers 4.x, which 5.x reads too; the one with a single file is not written.
        """
        asked = {**kwargs, "push_to_hub": push_to_hub, "legacy_serialization=False": not legacy_serialization}
        if refused := [name for name, value in asked.items() if value or name in kwargs]:
            raise UnsupportedError(f"save_pretrained does not do {', '.join(refused)}")
        folder = prepare_folder(save_directory)
        self.image_processor._set_processor_class(type(self).__name__)
        with replacing(folder, optional=(TEMPLATE_FILE,)) as new:
            written: list[str | os.PathLike[str]] = [
                *self.tokenizer.save_pretrained(new),
                *self.image_processor.save_pretrained(new),
                write_json(new / "processor_config.json", self.to_dict()),
                *save_chat_template(new, self.chat_template),
            ]
        return list(dict.fromkeys(str(folder / Path(file).relative_to(new)) for file in written))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedError: Vitrail only reads from the hub."""
        raise UnsupportedError("push_to_hub is not supported; use save_pretrained and the hub's own client")

    def render_chat(self, conversation: Any, chat_template: str | None = None, **options: Any) -> Chat:
        """Render one conversation or a list of them, with their images; options of `apply_chat_template`."""
        return self.tokenizer.render_chat(
            conversation, self.chat_template, chat_template, self._image_tokens(), **options
        )

    def _begins(self, prompt: RenderedPrompt) -> bool:
        """Return whether a prompt has its own begin token, so that the tokenizer adds none."""
        bos = self.tokenizer.bos_token
        return bos is not None and prompt.text.startswith(bos)

    @property
    def _encoder(self) -> ImagePromptEncoder:
        cell = self.patch_size * self.spatial_merge_size
        return ImagePromptEncoder(
            self.tokenizer, self.image_processor, cell, self.image_token_id, self._image_tokens()
        )

    def _sort_options(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Split the keywords of a call into the tokenizer's, the image processor's, and return_tensors."""
        flat = {name: value for name, value in given.items() if name not in _GROUPS}
        for group in _GROUPS:
            check("PixtralProcessor", group, given.get(group), Mapping[str, Any] | None)
            for name, value in (given.get(group) or {}).items():
                if name in flat:
                    raise InputError(f"{name} is given twice: in {group} and beside it")
                flat[name] = value
        tensors = flat.pop("return_tensors", "pt")
        text_names, image_names = self._text_names(), self._image_names()
        unknown = sorted(name for name in flat if name not in text_names | image_names)
        if unknown:
            raise InputError(f"unknown arguments: {', '.join(unknown)}")
        text_options = {name: value for name, value in flat.items() if name in text_names}
        return text_options, {name: value for name, value in flat.items() if name in image_names}, tensors

    def _image_names(self) -> frozenset[str]:
        own = {*self.image_processor.option_names, *self.image_processor.own_options}
        return frozenset((own | {"device", "input_data_format"}) - _DECIDED)

    def _call_names(self) -> frozenset[str]:
        return frozenset({*self._text_names(), *self._image_names(), *_GROUPS, "return_tensors"})

    def _image_tokens(self) -> tuple[str, str, str]:
        return self.image_token, self.image_break_token, self.image_end_token

    def _text_names(self) -> frozenset[str]:
        parameters = inspect.signature(type(self.tokenizer).__call__).parameters
        return frozenset({*parameters, "return_mm_token_type_ids"} - _DECIDED)

    def _look_up(self, token: str) -> int | None:
        index = self.tokenizer.find_token(token)
        if index is None and self.tokenizer.needs_image_tokens:
            raise CheckpointError(f"the tokenizer has no {token}; a tokenizer for images needs it")
        return index


def load_processor(folder: str | os.PathLike[str], **overrides: Any) -> PixtralProcessor:
    """Load the processor of a folder; `overrides` and errors as `PixtralProcessor.from_pretrained`."""
    return PixtralProcessor.from_pretrained(folder, **overrides)


def _as_texts(text: Any) -> list[str | RenderedPrompt]:
    texts = [text] if isinstance(text, (str, RenderedPrompt)) else text
    listed = isinstance(texts, (list, tuple)) and len(texts) > 0
    if not listed or not all(isinstance(item, (str, RenderedPrompt)) for item in texts):
        raise InputError(f"text is a text or a list of texts; got {type(text).__name__}")
    return list(texts)
