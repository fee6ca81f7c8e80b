"""Conversions between Vitrail and mistral-common: files, messages, images, errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.errors import CheckpointError, MissingPackageError, PromptError
from vitrail.files.formatting import first_line
from vitrail.files.lfs import PREFIX_SIZE, refuse_pointer
from vitrail.images.batch_feature import BatchFeature, check_tensor_type
from vitrail.prompts.messages import ImagePart, Message, TextPart
from vitrail.tokenizer.patterns import check_pattern


def open_tokenizer(file: Path, mode: Any) -> Any:
    """Open mistral-common's tokenizer of a file. Raises CheckpointError, or MissingPackageError with the extra."""
    try:
        from mistral_common.protocol.instruct.validator import ValidationMode
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    except ImportError as error:
        raise MissingPackageError(
            "MistralCommonTokenizer needs mistral-common: pip install 'vitrail[mistral]'"
        ) from error
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; expected tekken.json or *.model.v*")
    try:
        opened = MistralTokenizer.from_file(str(file), mode=ValidationMode(mode))
    except ImportError as error:
        raise MissingPackageError(
            f"{file.name} needs sentencepiece: pip install 'vitrail[mistral]'"
        ) from error
    except Exception as error:  # errors of the library, pydantic, json and sentencepiece share no base
        with suppress(OSError), file.open("rb") as stream:  # only now: a good file is read once
            refuse_pointer(stream.read(PREFIX_SIZE), str(file))
        raise CheckpointError(
            f"{file} is no tokenizer that mistral-common reads: {first_line(error)}"
        ) from error
    rule = getattr(getattr(opened.instruct_tokenizer.tokenizer, "_model", None), "_pat_str", None)
    if isinstance(rule, str):  # Tekken's, which tiktoken runs
        check_pattern(rule, str(file))
    return opened


def openai_message(message: Message) -> dict[str, Any]:
    """Convert a message to the dict that mistral-common's `from_openai` reads, with every image opened."""
    plain: dict[str, Any] = dict(message.extra)
    plain["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, tuple):
        plain["content"] = [_openai_part(part) for part in message.content]
    else:
        plain["content"] = message.content
    if message.tool_calls:
        plain["tool_calls"] = [dict(call) for call in message.tool_calls]
    for name in ("tool_call_id", "name"):
        if getattr(message, name) is not None:
            plain[name] = getattr(message, name)
    return plain


def _openai_part(part: Any) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if not isinstance(part, ImagePart):
        return {"type": "thinking", "thinking": part.thinking, "closed": part.closed}
    if part.source is None:
        raise PromptError("an image has no source; this tokenizer takes images only inside the messages")
    from vitrail.images.load import load_image

    file = io.BytesIO()
    load_image(part.source).save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def stack_images(images: Sequence[np.ndarray[Any, Any]], tensors: Any) -> Mapping[str, Any]:
    """Batch images (3, H, W) of any sizes as pixel_values and image_sizes, as lists, arrays or tensors."""
    if not images:
        return {}
    sizes = [image.shape[1:] for image in images]
    if check_tensor_type(tensors) is None:
        return {"pixel_values": list(images), "image_sizes": [tuple(size) for size in sizes]}
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    batch = np.zeros((len(images), 3, height, width), np.float32)
    for room, image in zip(batch, images, strict=True):
        room[:, : image.shape[1], : image.shape[2]] = image
    return BatchFeature({"pixel_values": batch, "image_sizes": np.array(sizes)}, tensors)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of mistral-common, pydantic and Python into one PromptError."""
    from mistral_common.exceptions import MistralCommonException

    try:
        yield
    except (MistralCommonException, ValueError, TypeError, AssertionError, KeyError, RuntimeError) as error:
        raise PromptError(f"{what}: {first_line(error)}") from error
