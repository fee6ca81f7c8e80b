"""What a process keeps for itself of Vitrail's own quantised checkpoint, and what two share: measured, on Linux."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.files.safetensors import write_safetensors
from vitrail.quant.formats import vitrail as own_format

MEASURE = """
import gc, json, sys
import torch
import vitrail
from vitrail.quant.replace import Quantized
from vitrail.weights.load import load_into

def status(word):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

def mapping(path):
    found, inside = {}, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = line.split()
            if "-" in head[0] and not head[0].endswith(":"):
                inside = line.rstrip().endswith(path)
            elif inside and head[0].rstrip(":") in ("Rss", "Anonymous", "Shared_Clean", "Shared_Dirty"):
                name = head[0].partition("_")[0].rstrip(":")
                found[name] = found.get(name, 0) + int(head[1]) * 1024
    return found

vitrail.MistralForCausalLM
torch.ones(300, 300) @ torch.ones(300, 300)
before = status("RssAnon")
model = vitrail.MistralForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
loaded = status("RssAnon") - before
packed = [m.packed for m in model.modules() if isinstance(m, Quantized)]
for tensor in (tensor for weight in packed for tensor in weight.tensors.values()):
    tensor.view(torch.uint8).numpy().max()  # every page is read
found = {"loaded": loaded, "read": status("RssAnon") - before}
print(json.dumps(found | mapping(sys.argv[1] + "/model.safetensors")))
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts memory as Linux tells it")
def test_a_second_process_shares_the_pages(tmp_path: Path) -> None:
    """Of a file of 46 MB a process keeps less than 8 MB for itself, and two that read it all hold its pages together."""
    config = vitrail.MistralConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = vitrail.MistralForCausalLM(config)
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            state[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        format = own_format.Q8 if "embed" in name or "head" in name else own_format.Q4
        for part, (dtype, shape) in format.specs(tuple(parameter.shape), 32).items():
            value = (
                torch.full(shape, 0.01, dtype=dtype)
                if dtype.is_floating_point
                else torch.ones(shape, dtype=dtype)
            )
            state[name.removesuffix("weight") + part] = value
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state, order=own_format.Q4.file_order(specs), align=own_format.ALIGNMENT)
    config.save_pretrained(tmp_path)
    size = path.stat().st_size
    assert size > 40_000_000
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEASURE, str(tmp_path)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        found = [json.loads(process.stdout.readline()) for process in started]  # type: ignore[union-attr]
    finally:
        for process in started:
            process.communicate("\n", timeout=60)
    for measured in found:
        assert measured["loaded"] < 8_000_000
        assert measured["read"] < 12_000_000
        assert measured["Anonymous"] == 0
        assert measured["Rss"] > 0.9 * size
    # The one that measured later saw the other's pages beside its own.
    assert max(measured["Shared"] for measured in found) > 0.9 * size
