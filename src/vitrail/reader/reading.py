"""Reading many images with the embedded reader: text and confidence of each, in batches of like size.

One window of images is held at a time; inside it they are sorted, so that a batch has little padding. Files are opened
by the caller's images iterator, answers come in its order.
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
"""Images that are held at once, at most."""
WINDOW_PIXELS = 1 << 26
"""Their pixels together, about; a larger image is held alone."""
BATCH_PIXELS = 1 << 24
"""Of one batch, with every image padded to the highest and the widest. A step of decoding costs little more for a
hundred images than for one, so batches are as large as memory likes."""


class BatchReader:
    """The embedded reader, or another checkpoint that answers as it does, for many images.

    Args:
        model: a checkpoint's folder; None: the embedded one.
    """

    def __init__(self, model: Path | None = None) -> None:
        source = embedded_path() if model is None else model
        processor, network = load(source, dtype="float32")
        self._open(network, processor)

    @classmethod
    def of(cls, model: Any, processor: Any) -> BatchReader:
        """The same with a model and a processor that are loaded already."""
        reader = cls.__new__(cls)
        reader._open(model, processor)
        return reader

    def _open(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        # Where the checkpoint names no longest answer, generate() would end after 20 ids.
        self._longest = {} if model.generation_config.max_new_tokens else {"max_new_tokens": LONGEST}
        self._special = torch.tensor(sorted(self._processor.tokenizer.all_special_ids))
        conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        self._prompt = self._processor.apply_chat_template(conversation, add_generation_prompt=True)

    def read(self, images: Iterable[Image]) -> Iterator[Reading]:
        """Read images (RGB) in their order; answers come when their window is done."""
        for window in _windows(images):
            found: dict[int, Reading] = {}
            for batch in self._batches(window):
                found |= zip(batch, self._read([window[index] for index in batch]), strict=True)
            yield from (found[index] for index in range(len(window)))

    def _batches(self, images: Sequence[Image]) -> Iterator[list[int]]:
        """Indices of images that are read together, small images first."""
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
        """The least probability (B,) that any written character had; control tokens do not count."""
        chances = torch.stack(
            [
                logits.float().softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)
                for logits, ids in zip(output.logits or (), written.T, strict=True)
            ],
            dim=1,
        )
        return chances.masked_fill(torch.isin(written, self._special), 1.0).amin(dim=1)


def _windows(images: Iterable[Image]) -> Iterator[list[Image]]:
    """Images that are held at once: at most WINDOW of them, and no more after WINDOW_PIXELS."""
    window: list[Image] = []
    for image in images:
        window.append(image)
        if len(window) == WINDOW or sum(held.width * held.height for held in window) >= WINDOW_PIXELS:
            yield window
            window = []
    if window:
        yield window
