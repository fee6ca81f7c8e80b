"""data/prompts: conversations to ids, by mistral-common 1.13.1 on Python 3.11, in its validation mode `test`.

The conversations are read from the recordings themselves: the seeded program that drew them is not kept. What
mistral-common makes of them (ids, text, grids, images, refusals) is made anew. tokenizers.json says which of its files each
version's tokenizer is, or how it is derived from one; these derivations were written by hand.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, Tokenized
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image
from pydantic import ValidationError

from tests.prompts import VERSIONS, Record, records, tokenizer_file

LIBRARIES = {"mistral-common": "1.13.1"}
FILES = [*VERSIONS, "refused", "truncated", "fim"]
INPUTS = (
    "version", "messages", "tools", "continue_final_message", "reasoning_effort", "max_length", "prompt", "suffix",
)  # fmt: skip
RED_MEAN, RED_DEVIATION = 0.48145466, 0.26862954  # of CLIP's normalisation, which mistral-common applies


def make(folder: Path, names: list[str] = FILES) -> None:
    """Write NAME.jsonl for each name."""
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    for name in names:
        made = [{**inputs(record), **outputs(name, record)} for record in records(name)]
        lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in made]
        (folder / "prompts" / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def inputs(record: Record) -> Record:
    return {name: record[name] for name in INPUTS if name in record}


def outputs(name: str, record: Record) -> Record:
    version = record.get("version", name)
    try:
        tokenized = encode(version, record)
    except ValidationError as error:
        faults = [
            ": ".join((*filter(None, [".".join(map(str, f["loc"]))]), f["msg"])) for f in error.errors()
        ]
        return {"exception": type(error).__name__, "message": f"{error.title}: {'; '.join(faults)}"}
    except Exception as error:  # whatever it refuses with was recorded
        return {"exception": type(error).__name__, "message": str(error)}
    ids = tokenized.tokens
    text = tokenizer(version).decode(ids, SpecialTokenPolicy.KEEP)
    made: Record = {"ids": ids, "text": text}
    if name != "fim":
        made["grids"] = grids(version, ids)
    if name in VERSIONS:
        made["pictures"] = [
            round(255 * (float(pixels[0, 0, 0]) * RED_DEVIATION + RED_MEAN)) for pixels in tokenized.images
        ]
    return made


def encode(version: str, record: Record) -> Tokenized:
    if "prompt" in record:
        return tokenizer(version).encode_fim(FIMRequest(prompt=record["prompt"], suffix=record["suffix"]))
    counter = iter(range(256))
    effort = {"reasoning_effort": record["reasoning_effort"]} if "reasoning_effort" in record else {}
    request = ChatCompletionRequest.from_openai(
        with_images(record["messages"], counter),
        tools=record["tools"],
        continue_final_message=record["continue_final_message"],
        **({"truncate_for_context_length": True} if "max_length" in record else {}),
        **effort,
    )
    return tokenizer(version).encode_chat_completion(request, max_model_input_len=record.get("max_length"))


@functools.cache
def tokenizer(version: str) -> MistralTokenizer:
    return MistralTokenizer.from_file(str(tokenizer_file(version)))


def with_images(messages: Any, counter: Any) -> Any:
    """Messages with a PNG of the size in the place of `size:WxH`; its red is its number, by which it is found again."""
    if isinstance(messages, list):
        return [with_images(item, counter) for item in messages]
    if not isinstance(messages, dict):
        return messages
    url = messages.get("image_url")
    if isinstance(url, dict) and str(url.get("url", "")).startswith("size:"):
        width, height = map(int, url["url"][5:].split("x"))
        file = io.BytesIO()
        Image.new("RGB", (width, height), (next(counter), 0, 0)).save(file, "PNG")
        encoded = base64.b64encode(file.getvalue()).decode()
        return {**messages, "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    return {key: with_images(value, counter) for key, value in messages.items()}


def grids(version: str, ids: list[int]) -> list[list[int]]:
    """[rows, columns] of the image tokens of each image among the ids."""
    encoder = tokenizer(version).instruct_tokenizer.image_encoder
    if encoder is None:
        return []
    found: list[list[int]] = []
    rows, columns = 0, 0
    for index in ids:
        columns += index == encoder.special_ids.img
        if index == encoder.special_ids.img_break:
            rows, columns = rows + 1, 0
        elif index == encoder.special_ids.img_end:
            found.append([rows + 1, columns])
            rows, columns = 0, 0
    return found
