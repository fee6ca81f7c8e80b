"""Building one long prompt, Vitrail beside mistral-common: python benchmarks/prompt_building.py [ROUNDS].

100 messages with 20 images, and without any. Both are timed in turn, round by round, with the same tokenizer file and
the images already as data URLs or sizes. mistral-common's call cannot leave the images' pixels out; it is timed once
with 1×1 images, where they cost next to nothing, and once with images of 320×240. Vitrail writes the same [IMG] grids.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from PIL import Image

from vitrail.images.grid import image_grid
from vitrail.prompts.builtin import build_prompt, encode_prompt
from vitrail.prompts.builtin.sizes import lay_out
from vitrail.tokenizer.mistral import MistralCommonTokenizer

MESSAGES, IMAGES = 100, 20
TEXT = "Describe the image, please: what does the sign say, and which colour is the house behind it? "


def main(rounds: int) -> None:
    file = files("mistral_common") / "data" / "mistral_instruct_tokenizer_241114.model.v7m1"
    tokenizer = MistralCommonTokenizer(str(file))
    for images, width, height in ((0, 1, 1), (IMAGES, 1, 1), (IMAGES, 320, 240)):
        shown = {"images": images, "size": f"{width}x{height}"}
        print(json.dumps({**shown, **compare(tokenizer, images, width, height, rounds)}))


def compare(
    tokenizer: MistralCommonTokenizer, images: int, width: int, height: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of both calls, and the median of the rounds' ratios."""
    ours_of = conversation(f"size:{width}x{height}", images)
    theirs_of = conversation(data_url(width, height), images)
    format, encoder = tokenizer.prompt_format(), tokenizer.encoder

    def grid(height: int, width: int) -> Any:
        return image_grid(height, width, dialect="mistral")

    def ours() -> list[int]:
        prompt, _ = lay_out(build_prompt(ours_of, format), grid, placeholders=True)
        return encode_prompt(prompt, encoder)

    def theirs() -> list[int]:
        request: Any = ChatCompletionRequest.from_openai(theirs_of)
        return list(tokenizer.tokenizer.encode_chat_completion(request).tokens)

    assert ours() == theirs()
    times: dict[str, list[float]] = {"vitrail": [], "mistral_common": []}
    for _ in range(rounds):
        times["vitrail"].append(milliseconds(ours))
        times["mistral_common"].append(milliseconds(theirs))
    ratios = [mine / other for mine, other in zip(*times.values(), strict=True)]
    return {
        "ids": len(ours()),
        **{f"{name}_ms": round(statistics.median(found), 2) for name, found in times.items()},
        "ratio": round(statistics.median(ratios), 3),
    }


def conversation(url: str, images: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in range(MESSAGES // 2):
        parts: list[dict[str, Any]] = [{"type": "text", "text": f"{turn}: {TEXT * (1 + turn % 3)}"}]
        if turn < images:
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": f"Answer {turn}. {TEXT}"})
    return [{"role": "system", "content": TEXT}, *messages[:-1]]


def data_url(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
