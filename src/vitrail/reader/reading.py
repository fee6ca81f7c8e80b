"""Read many images with the embedded model: text and confidence of each, in batches of similar size.

One window of images is held in memory at a time and sorted by size, which keeps padding small. The caller's iterator
opens the files; results come in its order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitrail.auto import load
from vitrail.dialogue import LONGEST
from vitrail.generate.outputs import GenerateOutput
from vitrail.reader import embedded_path
from vitrail.reader.files import Reading

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

QUESTION = "What does it say?"
WINDOW = 256
"""Maximum number of images held in memory."""
WINDOW_PIXELS = 1 << 26
"""Approximate maximum of their pixels; a larger image is held alone."""
BATCH_PIXELS = 1 << 24
"""Maximum pixels of a batch after padding to its largest height and width. A decoding step costs little more for a
hundred images than for one, so batches are as large as memory allows."""


class BatchReader:
    """Reads many images with the embedded model, or another checkpoint with the same answer format.

    Args:
        model: a checkpoint folder; None: the embedded one.
    """

    def __init__(self, model: Path | None = None) -> None:
        source = embedded_path() if model is None else model
        processor, network = load(source, dtype="float32")
        self._open(network, processor)

    @classmethod
    def of(cls, model: Any, processor: Any) -> BatchReader:
        """Build a reader from a loaded model and processor."""
        reader = cls.__new__(cls)
        reader._open(model, processor)
        return reader

    def _open(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        # Without max_new_tokens in the checkpoint, generate() would stop after 20 ids.
        self._longest = {} if model.generation_config.max_new_tokens else {"max_new_tokens": LONGEST}
        self._special = torch.tensor(sorted(self._processor.tokenizer.all_special_ids))
        conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        self._prompt = self._processor.apply_chat_template(conversation, add_generation_prompt=True)

    def read(self, images: Iterable[Image]) -> Iterator[Reading]:
        """Read RGB images in order; readings are yielded when their window is complete."""
        for window in _windows(images):
            found: dict[int, Reading] = {}
            for batch in self._batches(window):
                found |= zip(batch, self._read([window[index] for index in batch]), strict=True)
            yield from (found[index] for index in range(len(window)))

    def _batches(self, images: Sequence[Image]) -> Iterator[list[int]]:
        """Yield the indices of each batch, small images first."""
        grids = [self._processor.image_grid(image.height, image.width) for image in images]
        batch: list[int] = []
        height = width = 0
        for index in sorted(range(len(images)), key=lambda index: grids[index].tokens):
            height, width = max(height, grids[index].height), max(width, grids[index].width)
            if batch and (len(batch) + 1) * height * width > BATCH_PIXELS:
                yield batch
                batch, height, width = [], grids[index].height, grids[index].width
            batch.append(index)
        if batch:
            yield batch

    def _read(self, images: Sequence[Image]) -> list[Reading]:
        begun = time.perf_counter()
        inputs = self._processor(
            text=[self._prompt] * len(images),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device, dtype=self._model.dtype)
        output: Any = self._model.generate(
            **inputs, **self._longest, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        written = output.sequences[:, inputs["input_ids"].shape[1] :]
        sure = self._confidence(output, written)
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        seconds = (time.perf_counter() - begun) / len(images)
        return [Reading(text, float(share), seconds) for text, share in zip(texts, sure, strict=True)]

    def _confidence(self, output: GenerateOutput, written: Tensor) -> Tensor:
        """Return the lowest probability (B,) of the written characters; control tokens are ignored."""
        chances = torch.stack(
            [
                logits.float().softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)
                for logits, ids in zip(output.logits or (), written.T, strict=True)
            ],
            dim=1,
        )
        return chances.masked_fill(torch.isin(written, self._special), 1.0).amin(dim=1)


def _windows(images: Iterable[Image]) -> Iterator[list[Image]]:
    """Group images into windows of at most WINDOW images and about WINDOW_PIXELS pixels."""
    window: list[Image] = []
    for image in images:
        window.append(image)
        if len(window) == WINDOW or sum(held.width * held.height for held in window) >= WINDOW_PIXELS:
            yield window
            window = []
    if window:
        yield window
