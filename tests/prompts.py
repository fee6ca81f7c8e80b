"""Recorded prompts and the tokenizers they were recorded with: read, derived and converted once a session. No tests."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mistral_common
from PIL import Image

from vitrail.images.grid import Grid, image_grid
from vitrail.prompts.builtin import BuiltPrompt, Format, build_prompt
from vitrail.prompts.builtin.sizes import lay_out
from vitrail.tokenizer.mistral import MistralCommonTokenizer

RECORDED = Path(__file__).parent / "golden" / "data" / "prompts"
SENTENCEPIECE = ("v1", "v2", "v3", "v7", "v7m1")
TEKKEN = ("v3-tekken", "v7-tekken", "v11", "v13", "v15")
VERSIONS = (*SENTENCEPIECE, *TEKKEN)
TAKE_IMAGES = ("v7m1", *TEKKEN)
Record = dict[str, Any]


def wheel_file(name: str) -> Path:
    """A tokenizer file that mistral-common ships."""
    return Path(mistral_common.__file__).parent / "data" / name


def records(name: str, version: str | None = None) -> list[Record]:
    """The lines of a recording, all of them or those of one version."""
    lines = (RECORDED / f"{name}.jsonl").read_text("utf-8").split("\n")
    found = [json.loads(line) for line in lines if line]
    return [record for record in found if version in (None, record.get("version"))]


@functools.cache
def tokenizer_file(version: str) -> Path:
    """The file of a version's tokenizer: the wheel's, or derived from it as tokenizers.json says."""
    recipe = json.loads((RECORDED / "tokenizers.json").read_text())["tokenizers"][version]
    source = wheel_file(recipe["file"])
    if "patch" not in recipe:
        return source
    content = json.loads(source.read_text())
    for step in recipe["patch"]:
        *parents, last = step["path"].strip("/").split("/")
        place = content
        for key in parents:
            place = place[key]
        place[last] = step["value"]
    derived = _folder() / f"tekken_{version}.json"
    derived.write_text(json.dumps(content))
    return derived


@functools.cache
def tokenizer(version: str) -> MistralCommonTokenizer:
    """The tokenizer of a version, through mistral-common."""
    return MistralCommonTokenizer(tokenizer_file(version))


@functools.cache
def tokenizer_folder(version: str) -> Path:
    """A folder as a checkpoint's, with the tokenizer's file only."""
    folder = _folder() / version
    folder.mkdir()
    file = tokenizer_file(version)
    name = "tekken.json" if file.suffix == ".json" else file.name
    (folder / name).symlink_to(file)
    return folder


def grid_of(version: str, height: int, width: int) -> Grid:
    """The grid that mistral-common gives an image of this size."""
    config = tokenizer(version).image_config
    return image_grid(
        height,
        width,
        patch_size=config.image_patch_size,
        merge=config.spatial_merge_size,
        longest_edge=config.max_image_size,
        dialect="mistral",
    )


def build(
    record: Record, version: str, format: Format | None = None, mode: str = "test"
) -> tuple[BuiltPrompt, list[Grid]]:
    """A record's prompt in Vitrail's builder, with its images' grids."""
    prompt = build_prompt(
        record["messages"],
        tokenizer(version).prompt_format() if format is None else format,
        tools=record["tools"],
        continue_final_message=record["continue_final_message"],
        reasoning_effort=record.get("reasoning_effort"),
        mode=mode,
    )
    return lay_out(prompt, functools.partial(grid_of, version), placeholders=True)


def with_images(messages: Any) -> Any:
    """Messages with images of one colour in the place of `size:WxH`."""
    if isinstance(messages, list):
        return [with_images(item) for item in messages]
    if isinstance(messages, dict):
        url = messages.get("image_url")
        if isinstance(url, dict) and str(url.get("url", "")).startswith("size:"):
            width, height = map(int, url["url"][5:].split("x"))
            return {"type": "image", "image": Image.new("RGB", (width, height), (200, 120, 40))}
        return {key: with_images(value) for key, value in messages.items()}
    return messages


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vitrail-prompts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
