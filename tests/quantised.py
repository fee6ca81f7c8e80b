"""Tiny checkpoints whose rows divide into groups, and their quantised copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import vitrail
from tests import tiny
from vitrail.ops.weight import Layout
from vitrail.quant.config import Quantization
from vitrail.weights.quantize import Written, write
from vitrail.weights.quantize_plan import Work, prepare

WIDE = {"text_config": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}}
"""Changes of a tiny configuration after which groups of 32 divide every row; finding a layer's levels takes long."""

LAYOUTS = {"q4": Layout.PANELS4, "q8": Layout.PANELS8, "bf16": Layout.PANELS16}
"""How Vitrail's own formats lie in memory."""


def source(
    folder: Path, family: str = "llava", *, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Path:
    """A whole tiny checkpoint in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.model(family, **{**WIDE, **options}).to(dtype).save_pretrained(folder)
    tiny.write_inputs(folder, family)
    return folder


def network(folder: Path) -> Any:
    """A folder's model on the meta device."""
    config = vitrail.AutoConfig.from_pretrained(folder)
    kind = (
        vitrail.AutoModelForImageTextToText
        if hasattr(config, "vision_config")
        else vitrail.AutoModelForCausalLM
    )
    with torch.device("meta"):
        return kind.from_config(config)


def work(folder: Path, out: Path, config: Quantization | None = None, **options: Any) -> Work:
    """What `vitrail quantize` would do."""
    return prepare(network(folder), folder, out, config or vitrail.QuantizeConfig(), **options)


def written(folder: Path, out: Path, config: Quantization | None = None, **options: Any) -> Written:
    """`folder` quantised into `out`."""
    return write(work(folder, out, config, **options))


def load(folder: Path, **options: Any) -> Any:
    """The model of a folder."""
    return vitrail.AutoModelForImageTextToText.from_pretrained(folder, **options)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
