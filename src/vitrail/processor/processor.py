"""PixtralProcessor: text and pictures → one batch for the model, ids → text. Reading of folders: processor_files.py."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.writing import prepare_folder, write_json
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.grid import Grid, image_grid
from vitrail.prompts.builtin import BuiltPrompt
from vitrail.prompts.builtin.encode_chat import (
    AUTO,
    build_chat,
    choose_format,
    count_pictures,
    fit_rows,
    place_pictures,
    remembered_pictures,
)
from vitrail.prompts.builtin.pieces import Picture
from vitrail.prompts.builtin.trusted import read_trusted
from vitrail.prompts.chat_template import ChatTemplate, save_chat_template
from vitrail.prompts.control_token_mask import count
from vitrail.prompts.render import Chat, choose_template, refuse_assistant_mask, render_chat
from vitrail.responses.ids import to_list
from vitrail.tokenizer.fast import FastTokenizer
from vitrail.tokenizer.mistral import MistralCommonTokenizer
from vitrail.tokenizer.padding import limit_of

if TYPE_CHECKING:
    from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast
    from vitrail.responses.events import Response

# What only the processor decides; the rest of an image processor's and a tokenizer's options may be given to a call.
_DECIDED = frozenset(
    {"self", "text", "text_pair", "images", "patch_size", "kwargs", "return_tensors", "verbose"}
)
_CHAT_OPTIONS = ("add_generation_prompt", "continue_final_message", "tools", "documents")
_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")


class PixtralProcessor:
    """A tokenizer and an image processor as one, for Pixtral and Mistral 3 checkpoints.

    image_processor, tokenizer: both needed. patch_size: side of the tower's patches in pixels; spatial_merge_size: patches
    per token along each side. chat_template: the tokenizer's own where None. image_token stands for a picture in a text;
    image_break_token and image_end_token end its rows and its last row. Their ids are looked up in the tokenizer.
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
        if not isinstance(tokenizer, (FastTokenizer, MistralCommonTokenizer)):
            raise UnsupportedError(
                f"PixtralProcessor reads prompts as text with Vitrail's own tokenizers; got {type(tokenizer).__name__}"
            )
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
        """The processor of a folder or of a model on the hub, in the layout of transformers 4.x or 5.x.

        use_fast=True takes the image processor for tensors, False the one for PIL; without it the folder decides.
        tekken.json and *.model.v* come before tokenizer.json; tokenizer_mode="hf" turns that round. A folder in Mistral's
        own format (format="mistral" where it holds both) prepares pictures in the "mistral" dialect unless its
        preprocessor_config.json names another. Other keywords override the processor's arguments and the tokenizer's
        configuration. Raises CheckpointError for what is missing or does not belong, InputError for unknown keywords.
        """
        from vitrail.processor.load import read_processor

        hub = HubOptions(revision, token, cache_dir, local_files_only, force_download)
        folder = CheckpointFolder.open(pretrained_model_name_or_path, hub, format=kwargs.get("format"))
        return cls(**read_processor(folder, kwargs))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        audio: None = None,
        videos: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts and their pictures → input_ids, attention_mask (B, T), pixel_values (N, 3, H, W), image_sizes (N, 2).

        text: one or a list; each `image_token` in it stands for the next picture. images: one, a list, or a list of lists
        (one for each text) of whatever `load_image` opens. Keywords are those of the tokenizer's and the image processor's
        calls, flat or as text_kwargs, images_kwargs and common_kwargs; return_tensors is "pt" unless given.
        max_image_tokens: the most ids one picture may cost; larger ones are shrunk.
        Raises InputError where the numbers of pictures and of image tokens differ, and for unknown keywords.
        """
        if audio is not None or videos is not None:
            raise UnsupportedError("PixtralProcessor reads text and images; it does not do audio or videos")
        if text is None and images is None:
            raise InputError("give text, images or both")
        text_options, image_options, tensors = self._sort_options(kwargs)
        with_types = text_options.pop("return_mm_token_type_ids", False)
        texts = [] if text is None else self._read(_as_texts(text))
        images = remembered_pictures(texts) if images is None else images
        vision: Mapping[str, Any] = {}
        if images is not None and _holds_pictures(images):
            vision = self._process_images(images, image_options)
        prompts = texts
        if text is not None:
            sizes = to_list(vision.get("image_sizes", []))
            self._check_counts(texts, images, len(sizes))
            grids = [self._grid(height, width) for height, width in sizes]
            prompts = place_pictures(texts, self.image_token, grids, self._expansion)
            prompts, vision = self._fit(prompts, vision, text_options)
        encoded = self._tokenize(prompts, text_options) if text is not None else {}
        if with_types and encoded:
            encoded["mm_token_type_ids"] = [
                np.isin(row, self.image_ids).astype(int).tolist() for row in encoded["input_ids"]
            ]
        return BatchFeature({**encoded, **vision}, tensors)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """One conversation or a list of them → the prompt (default), or ids with the pictures (`tokenize=True`).

        Keywords: add_generation_prompt, continue_final_message, tools, documents, tokenize, return_dict (False gives the
        ids alone), what `__call__` takes, and what the template reads. Pictures are opened from where the messages say.
        format: one of Mistral's own prompt formats instead of the template, by name or "auto" (docs/prompts.md); it is
        the default where there is no template and the tokenizer is mistral-common's.
        Control tokens that stand in a message stay text. Raises PromptError with the place of a fault.
        """
        refuse_assistant_mask(kwargs.pop("return_assistant_tokens_mask", False))
        tokenize, return_dict = kwargs.pop("tokenize", False), kwargs.pop("return_dict", False)
        known = self._call_names()
        call_options = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
        if not tokenize and (call_options or return_dict):
            raise InputError(
                f"{', '.join(call_options) or 'return_dict'}: needs tokenize=True; a prompt is text"
            )
        chat = self._render(conversation, chat_template, kwargs)
        if not tokenize:
            return chat.text
        bos = self.tokenizer.bos_token
        if bos is not None and chat.prompts[0].startswith(bos):
            call_options["add_special_tokens"] = False
        sources = [[part.source for part in parts if part.source is not None] for parts in chat.pictures]
        out = self(text=chat.text, images=sources if any(sources) else None, **call_options)
        return out if return_dict else out["input_ids"]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The text of one sequence of ids; arguments as the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The texts of several sequences of ids; arguments as the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def parse_response(self, ids: Any, **options: Any) -> Response:
        """The new ids that `generate` gave → text, reasoning and tool calls; options as `ResponseParser` (docs/tools.md)."""
        return self.tokenizer.parse_response(ids, **options)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The texts of what `generate` returned."""
        return self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    @property
    def model_input_names(self) -> list[str]:
        """The names of what a call returns for the model."""
        names = (*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes")
        return list(dict.fromkeys(names))

    def num_image_tokens(self, height: int, width: int, max_image_tokens: int | None = None) -> int:
        """What a picture of (height, width) pixels costs in a prompt: its image, break and end ids."""
        return self.picture_grid(height, width, max_image_tokens).tokens

    def picture_grid(self, height: int, width: int, max_image_tokens: int | None = None) -> Grid:
        """The grid of a picture of (height, width) pixels: the size it is read at, its rows and columns of tokens."""
        size = self.image_processor.size
        edge = size["longest_edge"] if "longest_edge" in size else (size["height"], size["width"])
        return image_grid(
            height,
            width,
            patch_size=self.patch_size,
            merge=self.spatial_merge_size,
            longest_edge=edge,
            dialect=self.image_processor.settings({}).dialect,
            max_image_tokens=max_image_tokens or self.image_processor.max_image_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a processor_config.json in the layout of transformers 4.x."""
        return {
            "processor_class": type(self).__name__,
            "patch_size": self.patch_size,
            "spatial_merge_size": self.spatial_merge_size,
            "image_token": self.image_token,
            "image_break_token": self.image_break_token,
            "image_end_token": self.image_end_token,
        }

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
        written = [
            *self.tokenizer.save_pretrained(folder),
            *self.image_processor.save_pretrained(folder),
            str(write_json(folder / "processor_config.json", self.to_dict())),
            *map(str, save_chat_template(folder, self.chat_template)),
        ]
        return list(dict.fromkeys(written))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: Vitrail only reads from the hub."""
        raise UnsupportedError("push_to_hub is not supported; use save_pretrained and the hub's own client")

    def _render(self, conversation: Any, chat_template: str | None, options: dict[str, Any]) -> Chat:
        native = isinstance(self.tokenizer, MistralCommonTokenizer)
        untold = AUTO if native and self.chat_template is None and chat_template is None else None
        format = options.pop("format", None) or untold
        if format is not None:
            if chat_template is not None:
                raise InputError("give format or chat_template, not both")
            form = choose_format(format, self.tokenizer.prompt_format)
            options.setdefault("mode", getattr(self.tokenizer, "mode", "test"))
            return build_chat(conversation, form, self.tokenizer.encoder, options)
        given = {name: options.pop(name) for name in _CHAT_OPTIONS if name in options}
        controls = tuple(dict.fromkeys((*self.tokenizer.control_tokens, *self._image_tokens())))
        return render_chat(
            conversation,
            choose_template(self.chat_template, chat_template, given.get("tools"), controls),
            controls=controls,
            special_tokens=self.tokenizer.special_tokens_map,
            variables=options,
            **given,
        )

    def _process_images(self, images: Any, options: dict[str, Any]) -> BatchFeature:
        cell = self.patch_size * self.spatial_merge_size
        return self.image_processor(
            images, patch_size={"height": cell, "width": cell}, return_tensors="pt", **options
        )

    def _check_counts(self, texts: Sequence[str], images: Any, pictures: int) -> None:
        """Every picture needs its token and every token its picture: in all, and per text where pictures are nested."""
        tokens = [count_pictures(text, self.image_token) for text in texts]
        if sum(tokens) != pictures:
            raise InputError(
                f"the text has {sum(tokens)} {self.image_token} and there are {pictures} pictures; every picture needs one"
            )
        if (
            isinstance(images, (list, tuple))
            and images
            and all(isinstance(row, (list, tuple)) for row in images)
        ):
            given = [len(row) for row in images]
            if len(given) > 1 and given != tokens:
                raise InputError(
                    f"the texts have {tokens} {self.image_token}, but their lists hold {given} pictures"
                )

    def _grid(self, height: int, width: int) -> Grid:
        """The grid of a prepared picture. Raises InputError unless it is made of whole squares."""
        grid = image_grid(
            height,
            width,
            patch_size=self.patch_size,
            merge=self.spatial_merge_size,
            longest_edge=max(height, width),
        )
        if (grid.height, grid.width) != (height, width):
            raise InputError(
                f"a picture of {width}×{height} pixels (width×height) is not made of whole squares of "
                f"{self.patch_size * self.spatial_merge_size}; leave do_resize on"
            )
        return grid

    def _expansion(self, grid: Grid) -> str:
        """What stands for one picture: a row of image tokens for each row of the grid, each with its end."""
        row = self.image_token * grid.cols
        return (row + self.image_break_token) * (grid.rows - 1) + row + self.image_end_token

    def _read(self, texts: list[str]) -> list[str]:
        """Texts as prompts: mistral-common's tokenizers find no control tokens in texts, so they are found here."""
        if not isinstance(self.tokenizer, MistralCommonTokenizer):
            return texts
        controls = self.tokenizer.control_tokens
        return [
            t if isinstance(t, BuiltPrompt) else read_trusted(t, controls, self.image_token) for t in texts
        ]

    def _fit(
        self, prompts: list[str], vision: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[list[str], Mapping[str, Any]]:
        """Prompts of built-in formats without their oldest turns where they are too long, and their pictures."""
        if not any(isinstance(prompt, BuiltPrompt) and prompt.from_messages for prompt in prompts):
            return prompts, vision
        limit = limit_of(
            self.tokenizer._plan(
                options.get("padding", False),
                options.get("truncation"),
                options.get("max_length"),
                None,
                None,
            )
        )
        if limit is None:
            return prompts, vision
        prompts, kept = fit_rows(prompts, self.tokenizer.encoder, limit)
        if not kept:
            return prompts, {}
        return prompts, {name: value[kept] for name, value in vision.items()}

    def _tokenize(self, prompts: Sequence[str], options: dict[str, Any]) -> BatchFeature:
        encoded = self.tokenizer(list(prompts), **options)
        wanted = [_image_tokens(prompt, self.image_token) for prompt in prompts]
        kept = [list(row).count(self.image_token_id) for row in encoded["input_ids"]]
        if kept != wanted:
            raise InputError(
                f"pictures need {wanted} {self.image_token}, but {kept} are left after truncation; raise max_length"
            )
        return encoded

    def _sort_options(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Keywords of a call → the tokenizer's, the image processor's, and return_tensors."""
        flat = {name: value for name, value in given.items() if name not in _GROUPS}
        for group in _GROUPS:
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
        if isinstance(self.tokenizer, MistralCommonTokenizer):
            return self.tokenizer.encoder.find(token)  # some of its files are for text alone
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or (index == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise CheckpointError(f"the tokenizer has no {token}; a tokenizer for pictures needs it")
        return int(index)


def load_processor(folder: str | os.PathLike[str], **overrides: Any) -> PixtralProcessor:
    """The processor of a folder; `overrides` and errors as `PixtralProcessor.from_pretrained`."""
    return PixtralProcessor.from_pretrained(folder, **overrides)


def _image_tokens(prompt: str, image_token: str) -> int:
    """How many image tokens a prompt has once its pictures are written out."""
    if isinstance(prompt, BuiltPrompt):
        return sum((p.rows or 1) * (p.cols or 1) for p in prompt.pieces if isinstance(p, Picture))
    return count(prompt, image_token)


def _as_texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
        raise InputError(f"text is a text or a list of texts; got {type(text).__name__}")
    return list(texts)


def _holds_pictures(images: Any) -> bool:
    """Whether there is a picture in nested lists: empty ones stand for texts without."""
    if isinstance(images, (list, tuple)):
        return any(_holds_pictures(image) for image in images)
    return images is not None
