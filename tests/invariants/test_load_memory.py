"""Loading needs the model, its largest tensor and 300 MB of anonymous memory, converting the tensor and 300 MB; no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.files.safetensors import write_safetensors

ROOT = Path(__file__).parents[2]
MB = 1_000_000
LOAD = """
import sys
import torch
import vitrail
from tests.memory import growth

options = {"bf16": {"dtype": "auto"}, "fp32": {"dtype": torch.float32}}
options["nf4"] = {
    "dtype": torch.bfloat16,
    "quantization_config": vitrail.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
vitrail.MistralForCausalLM  # imported before the count begins
from vitrail.weights.load import load_into
with growth() as grown:
    model = vitrail.MistralForCausalLM.from_pretrained(sys.argv[1], **options[sys.argv[2]])
packed = sum(t.nbytes for m in model.modules() if hasattr(m, "packed") for t in m.packed.tensors.values())
print(grown.bytes, packed + sum(p.nbytes for p in model.parameters()))
"""
CONVERT = """
import sys
import vitrail
from tests.memory import growth
from vitrail.weights.convert import convert
vitrail.MistralForCausalLM  # imported before the count begins
with growth() as grown:
    written = convert(sys.argv[1], sys.argv[3], sys.argv[2])
print(grown.bytes, written.size)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of 625 MB in bfloat16, one shard per layer."""
    path = tmp_path_factory.mktemp("large")
    config = vitrail.MistralConfig(
        vocab_size=32768, hidden_size=2048, intermediate_size=5632, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=4, head_dim=128, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = vitrail.MistralForCausalLM(config)
    for name, parameter in model.named_parameters():
        values = torch.full(parameter.shape, 0.01, dtype=torch.bfloat16)
        values.view(-1)[::97] = 0.5
        write_safetensors(path / f"{name}.safetensors", {name: values})
    config.save_pretrained(path)
    assert sum(file.stat().st_size for file in path.iterdir()) > 600 * MB
    return path


def _run(code: str, *arguments: object) -> list[int]:
    """The numbers that `code` prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=ROOT)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux tells it"
)
@pytest.mark.parametrize("form", ["bf16", "fp32", "nf4"])
def test_peak_anonymous_memory(folder: Path, form: str) -> None:
    peak, model = _run(LOAD, folder, form)
    largest = 32768 * 2048 * (4 if form == "fp32" else 2)
    assert peak <= model + largest + 300 * MB
    assert model > (150 if form == "nf4" else 600) * MB


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux tells it"
)
def test_peak_anonymous_memory_of_a_conversion(folder: Path, tmp_path: Path) -> None:
    source = folder
    for to in ("mistral", "hf"):
        target = tmp_path / to
        peak, size = _run(CONVERT, source, to, target)
        assert size > 600 * MB
        assert peak <= 32768 * 2048 * 2 + 300 * MB
        source = target
