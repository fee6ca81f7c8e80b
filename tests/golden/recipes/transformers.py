"""data/{pixtral-0,mistral3-0} and data/image_processor: what transformers gives; recorded with 5.23.0 and torch 2.14.1.

The weights and images are random, drawn by a program that is not kept. From them, the recorded ids and pixels, and with
transformers 4.57 on, logits, image features, greedy ids and the PIL processor's pixels are made anew; other tensors are
copied. Not made here: case.loss (tests/golden/test_models.py says how it was), ministral3-0, a type that only transformers 5
has, and `tensor.*` and `*.batch.*` of the image processors, which torchvision 0.29.1 gave.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import DATA

LIBRARIES = {"transformers": "5.23.0", "torch": "2.14.1"}
MODELS = {
    "pixtral-0": transformers.LlavaForConditionalGeneration,
    "mistral3-0": transformers.Mistral3ForConditionalGeneration,
}
CASES = ("single", "two_images", "text_only", "ragged_batch")
SETTINGS = {
    "p8e96": (8, 96),
    "p14e112": (14, 112),
    "p14e1540": (14, 1540),
    "p16e1024": (16, 1024),
    "p28e1540": (28, 1540),
}


def make(folder: Path) -> None:
    """Write CHECKPOINT/case.CASE.safetensors, and the PIL halves of image_processor/SETTING.safetensors."""
    for name, kind in MODELS.items():
        config = kind.config_class.from_pretrained(DATA / name)
        for part in (config.text_config, config.vision_config):
            part.rope_theta = part.rope_parameters["rope_theta"]  # where transformers 4 looks for it
        model = kind.from_pretrained(DATA / name, config=config, dtype=torch.float32).eval()
        for case in CASES:
            recorded = load_file(DATA / name / f"case.{case}.safetensors")
            write(folder / name / f"case.{case}.safetensors", answers(model, recorded))
    for setting, (patch, edge) in SETTINGS.items():
        recorded = load_file(DATA / "image_processor" / f"{setting}.safetensors")
        write(folder / "image_processor" / f"{setting}.safetensors", images(recorded, patch, edge))


def answers(model: Any, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    given = {
        name: recorded[name].long()
        for name in ("input_ids", "attention_mask", "image_sizes")
        if name in recorded
    }
    given |= {"pixel_values": recorded["pixel_values"]} if "pixel_values" in recorded else {}
    with torch.no_grad():
        output = model(**given)
        made = {
            "logits": output.logits,
            "generated": model.generate(**given, max_new_tokens=12, do_sample=False).int(),
        }
    if output.image_hidden_states is not None:
        made["image_hidden_states"] = output.image_hidden_states
    return recorded | made


def images(recorded: dict[str, Tensor], patch: int, edge: int) -> dict[str, Tensor]:
    processor = transformers.PixtralImageProcessor(
        size={"longest_edge": edge}, patch_size={"height": patch, "width": patch}
    )
    made = {
        name: tensor for name, tensor in recorded.items() if not name.startswith("pil.") or ".batch." in name
    }
    for name in sorted({key.split(".")[1] for key in recorded} - {"batch"}):
        out = processor(Image.open(DATA / "images" / f"{name}.png"), return_tensors="pt")
        pixels = out.pixel_values[0]
        if (
            recorded[f"pil.{name}.pixels"].dim() == 1
        ):  # of a large one: mean, standard deviation, sum of absolutes
            pixels = torch.stack([pixels.mean(), pixels.std(), pixels.abs().sum()])
        made |= {f"pil.{name}.pixels": pixels, f"pil.{name}.size": out.image_sizes[0].int()}
    return made


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
