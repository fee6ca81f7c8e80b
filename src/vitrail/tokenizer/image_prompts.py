"""ImagePromptEncoder: prompts with images → ids, for the processor and mistral-common's tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.errors import InputError
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.grid import Grid
from vitrail.prompts.builtin.encode_chat import fit_rows
from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.tokenizer.base import BaseTokenizer


@dataclass(frozen=True)
class ImagePromptEncoder:
    """Encode prompts with images by a tokenizer and an image processor.

    Attributes:
        cell: side in pixels of the square behind one image token.
        image_token_id: id of the image token.
        tokens: names of the image, break and end tokens.
    """

    tokenizer: BaseTokenizer
    image_processor: Any
    cell: int
    image_token_id: int | None
    tokens: tuple[str, str, str] = (IMAGE, BREAK, END)

    def __call__(
        self,
        texts: Sequence[str | RenderedPrompt],
        images: Any = None,
        text_options: Mapping[str, Any] | None = None,
        image_options: Mapping[str, Any] | None = None,
        marked_ids: Sequence[int] = (),
    ) -> BatchFeature:
        """Encode prompts with their images.

        Args:
            images: one list for all prompts or one per prompt; None: the sources named in the prompts.
            marked_ids: ids that are 1 in an additional mm_token_type_ids.

        Returns:
            input_ids, attention_mask, pixel_values (N, 3, H, W) and image_sizes (N, 2).

        Raises:
            InputError: images and image tokens do not match.
            PromptError: a prompt is too long.
        """
        options = text_options or {}
        prompts = [self.tokenizer.read_prompt(text, self.tokens[0]) for text in texts]
        if images is None and any(prompt.sources for prompt in prompts):
            images = [prompt.sources for prompt in prompts]
        images = _without_none(images, len(prompts))
        vision = self.prepare(images, image_options or {}) if _holds_images(images) else BatchFeature()
        if not prompts:
            return vision
        prompts = self.place(prompts, vision.grids, images)
        prompts, vision = self.fit(prompts, vision, options)
        encoded = self.encode(prompts, options)
        if marked_ids:
            marks = [np.isin(row, marked_ids).astype(int).tolist() for row in encoded["input_ids"]]
            encoded["mm_token_type_ids"] = marks
        return BatchFeature({**encoded, **vision}).with_grids(vision.grids)

    def prepare(self, images: Any, options: Mapping[str, Any]) -> BatchFeature:
        """Return pixel_values and image_sizes as tensors, with the images' grids in image tokens."""
        side = {"height": self.cell, "width": self.cell}
        made: BatchFeature = self.image_processor(images, patch_size=side, return_tensors="pt", **options)
        return made

    def place(
        self, prompts: Sequence[RenderedPrompt], grids: Sequence[Grid], images: Any = None
    ) -> list[RenderedPrompt]:
        """Expand the image tokens of each prompt. Raises InputError where images and image tokens do not match."""
        self._check_counts(prompts, images, len(grids))
        for grid in grids:
            grid.check_whole(self.cell)
        rest = iter(grids)
        return [prompt.with_grids(rest, self.tokens) for prompt in prompts]

    def fit(
        self, prompts: list[RenderedPrompt], vision: BatchFeature, options: Mapping[str, Any]
    ) -> tuple[list[RenderedPrompt], BatchFeature]:
        """Drop the oldest turns of built-in prompts that are too long, and the images of those turns."""
        if not any(prompt.from_messages for prompt in prompts):
            return prompts, vision
        names = ("padding", "truncation", "max_length")
        limit = self.tokenizer.prompt_limit(**{name: options[name] for name in names if name in options})
        if limit is None:
            return prompts, vision
        prompts, kept = fit_rows(prompts, self.tokenizer.encoder, limit)
        if not kept:
            return prompts, BatchFeature()
        left = BatchFeature({name: value[kept] for name, value in vision.items()})
        return prompts, left.with_grids([vision.grids[place] for place in kept])

    def encode(self, prompts: Sequence[RenderedPrompt], options: Mapping[str, Any]) -> BatchFeature:
        """Encode expanded prompts. Raises InputError where truncation removed image tokens."""
        encoded = self.tokenizer(list(prompts), **options)
        wanted = [prompt.count_image_tokens(self.tokens[0]) for prompt in prompts]
        kept = [list(row).count(self.image_token_id) for row in encoded["input_ids"]]
        if kept != wanted:
            raise InputError(
                f"images need {wanted} {self.tokens[0]}, but {kept} are left after truncation; raise max_length"
            )
        return encoded

    def _check_counts(self, prompts: Sequence[RenderedPrompt], images: Any, given: int) -> None:
        """Check one token per image and one image per token: in all, and per prompt where images are nested."""
        name = self.tokens[0]
        counts = [prompt.count_images(name) for prompt in prompts]
        if sum(counts) != given:
            raise InputError(
                f"the text has {sum(counts)} {name} and there are {given} images; every image needs one"
            )
        nested = isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in images)
        if nested and len(images) > 1 and [len(row) for row in images] != counts:
            rows = [len(row) for row in images]
            raise InputError(f"the texts have {counts} {name}, but their lists hold {rows} images")


def _without_none(images: Any, prompts: int) -> Any:
    """Return images as a list per prompt if one entry is None, which stands for a text without images."""
    if not isinstance(images, (list, tuple)) or all(row is not None for row in images):
        return images
    if len(images) != prompts:
        raise InputError(
            f"images holds None, which stands for a text without images; it has {len(images)} entries for {prompts} texts."
        )
    return [[] if row is None else row if isinstance(row, (list, tuple)) else [row] for row in images]


def _holds_images(images: Any) -> bool:
    """Return whether nested lists hold an image; empty lists stand for texts without."""
    if isinstance(images, (list, tuple)):
        return any(_holds_images(image) for image in images)
    return images is not None
