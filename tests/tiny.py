"""Tiny random checkpoints and images for the tests, always the same; written with our own saving code.

A checkpoint takes its tokenizer, chat template and processor settings from tests/golden/data, in the layout
of transformers 4.57 (preprocessor_config.json beside processor_config.json), so that both libraries load it.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parent / "golden" / "data"
FAMILIES = {"llava": "pixtral-0", "mistral3": "mistral3-0", "ministral3": "ministral3-0"}


def image(height: int, width: int, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """An image (height, width) of soft noise: smooth enough to survive resizing, never flat."""
    generator = np.random.default_rng(seed * 1_000_003 + height * 1_009 + width)
    coarse = generator.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(coarse, "RGB").resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def config_dict(family: str = "llava", **changes: Any) -> dict[str, Any]:
    """config.json of a family; `changes` overwrite, `text_config=` and `vision_config=` are merged in."""
    data: dict[str, Any] = json.loads((DATA / FAMILIES[family] / "config.json").read_text("utf-8"))
    for key, value in changes.items():
        if key in ("text_config", "vision_config"):
            data[key] = {**data[key], **value}
        else:
            data[key] = value
    return data


def config(family: str = "llava", **changes: Any) -> Any:
    """The same as one of Vitrail's config objects."""
    import vitrail

    kind = vitrail.LlavaConfig if family == "llava" else vitrail.Mistral3Config
    return kind.from_dict(config_dict(family, **changes))


def randomize(model: Any, seed: int = 0) -> Any:
    """Fill every parameter with wide noise that depends on its name and `seed` only."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.dim() == 1:
                noise = noise * 0.1 + (1.0 if "norm" in name or "ln_" in name else 0.0)
            elif "embed_tokens" not in name:
                noise = noise * (1.5 / math.sqrt(parameter[0].numel()))
            parameter.copy_(noise.to(parameter.dtype))
    return model


def model(family: str = "llava", *, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model in float32, in evaluation mode."""
    import vitrail

    settings = config(family, **changes)
    kind = vitrail.Mistral3ForConditionalGeneration
    if family == "llava":
        kind = vitrail.LlavaForConditionalGeneration
    return randomize(kind(settings), seed).eval()


def write_inputs(folder: Path, family: str = "llava") -> None:
    """Tokenizer, chat template and processor settings, as transformers 4.57 writes them."""
    source = DATA / FAMILIES[family]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    del tokenizer["backend"]
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]  # as published files say; 4.57 adds one
    processor = json.loads((source / "processor_config.json").read_text("utf-8"))
    images = processor.pop("image_processor") | {"processor_class": "PixtralProcessor"}
    for name, data in (
        ("tokenizer_config.json", tokenizer),
        ("processor_config.json", processor),
        ("preprocessor_config.json", images),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(
    folder: Path, family: str = "llava", *, seed: int = 0, max_shard_size: int | str = "5GB", **changes: Any
) -> Path:
    """A whole tiny checkpoint in `folder` (made if missing), and the folder again."""
    folder.mkdir(parents=True, exist_ok=True)
    model(family, seed=seed, **changes).save_pretrained(folder, max_shard_size=max_shard_size)
    write_inputs(folder, family)
    return folder
