"""data/peft: logits of a tiny MistralForCausalLM with adapters, by PEFT 0.21.2 over transformers 5.23, torch 2.13.0.

The model and the adapters are random, drawn with seed 5 by a program that is not kept; what PEFT computes with them is made
anew, with any transformers that has the model. `pixtral/` names the modules as transformers 5 does and is left out under 4.
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import DATA

LIBRARIES = {"peft": "0.21.2", "transformers": "5.23.0", "torch": "2.13.0"}
ADAPTERS = ("plain", "rslora_patterns", "dora", "embedding")


def make(folder: Path) -> None:
    """Write inputs.safetensors, and ADAPTER/expected.safetensors of each adapter."""
    inputs = load_file(DATA / "peft" / "inputs.safetensors")
    ids = inputs["input_ids"]
    write(folder / "peft" / "inputs.safetensors", {"input_ids": ids, "logits_base": logits(base(), ids)})
    for name in ADAPTERS:
        model = peft.PeftModel.from_pretrained(base(), DATA / "peft" / name)
        made = {"logits_adapter": logits(model, ids)}
        merged = model.merge_and_unload()
        made["logits_merged"] = logits(merged, ids)
        recorded = load_file(DATA / "peft" / name / "expected.safetensors")
        state = merged.state_dict()
        made |= {
            key: state[key.removeprefix("merged.")].clone() for key in recorded if key.startswith("merged.")
        }
        write(folder / "peft" / name / "expected.safetensors", made)


def base() -> transformers.PreTrainedModel:
    config = transformers.MistralConfig.from_pretrained(DATA / "peft" / "base")
    config.rope_theta = config.rope_parameters["rope_theta"]  # where transformers 4 looks for it
    return transformers.MistralForCausalLM.from_pretrained(
        DATA / "peft" / "base", config=config, dtype=torch.float32
    )


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids.long()).logits
    return found


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
