"""Quantising takes the memory of the largest tensor and some work; loading what was quantised takes next to none."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.bench.geometries import PUBLISHED, config_of
from vitrail.files.safetensors import dtype_name, header_bytes, write_safetensors
from vitrail.files.safetensors_writer import Spec
from vitrail.quant.formats import vitrail as own_format
from vitrail.quant.policy import to_pack
from vitrail.weights.names import saved_names
from vitrail.weights.plan import own_tensors

ROOT = Path(__file__).parents[2]
MB = 1_000_000
MEASURE = """
import sys
from pathlib import Path
import torch
from tests import quantised
from tests.memory import growth
from vitrail import MistralForCausalLM, QuantizeConfig
from vitrail.quant.formats.vitrail import quantize_own
from vitrail.weights.quantize import write

quantize_own(torch.randn(64, 64), "q4")
work = quantised.work(Path(sys.argv[1]), Path(sys.argv[2]), QuantizeConfig(sys.argv[3]))
with growth() as grown:
    write(work)
print(grown.bytes)
"""
# What the C library keeps of freed blocks for later is given back at once here.
PROMPT_MALLOC = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _write(folder: Path, layers: int, rows: int) -> int:
    """A text model in bfloat16 with tensors that need no drawing; the bytes of its file."""
    config = vitrail.MistralConfig(
        vocab_size=rows, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, dtype="bfloat16", tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = vitrail.MistralForCausalLM(config)
    state = {}
    for name, parameter in model.named_parameters():
        state[name] = torch.full(parameter.shape, 0.01, dtype=torch.bfloat16)
        state[name].view(-1)[::97] = 0.5
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", state)
    config.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def _peak(folder: Path, out: Path, format: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(out), format],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=PROMPT_MALLOC,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux tells it"
)
def test_memory_follows_the_largest_tensor_and_not_the_model(tmp_path: Path) -> None:
    sizes, peaks = [], []
    for number, (layers, rows, format) in enumerate(
        [(1, 4096, "q8"), (4, 4096, "q8"), (1, 20480, "q8"), (1, 512, "q4")]
    ):
        folder = tmp_path / f"{number}"
        sizes.append(_write(folder, layers, rows))
        peaks.append(_peak(folder, tmp_path / f"{number}-q", format))
    one, several, wide, four = peaks
    assert sizes[1] - sizes[0] > 65 * MB
    assert abs(several - one) < 12 * MB  # four layers need what one needs
    grown = (20480 - 4096) * 1024  # weights that the larger table has more, each a byte in q8 and a little
    assert 0.8 * grown < wide - one < 1.3 * grown
    largest = [4096 * 1024, 4096 * 1024, 20480 * 1024, 2816 * 1024]
    assert all(peak < 4 * size + 100 * MB for peak, size in zip(peaks, largest, strict=True))
    assert four < 60 * MB


LOAD = """
import sys
import torch
import vitrail
from tests.memory import anonymous
from vitrail.model import loading

before = anonymous()
model = vitrail.LlavaForConditionalGeneration.from_pretrained(sys.argv[1], dtype="auto")
print(anonymous() - before, model.num_parameters())
"""


def _write_empty(folder: Path) -> int:
    """A file in q4 of Pixtral 12B's geometry that is one hole: all zeros, and no block on the disk. Its size."""
    config = config_of(PUBLISHED["pixtral-12b"])
    config.quantization_config = vitrail.QuantizeConfig()
    config.dtype = "bfloat16"
    with torch.device("meta"):
        model = vitrail.LlavaForConditionalGeneration(config)
    own, packed = own_tensors(model), to_pack(model, config.quantization_config)
    specs: dict[str, Spec] = {}
    for name, saved in saved_names(own).items():
        choice = packed.get(name.removesuffix(".weight"))
        if choice is None:
            specs[saved] = (torch.bfloat16, tuple(own[name].shape))
            continue
        rows, columns = own[name].shape
        for part, spec in choice.format.specs((rows, columns), choice.group, torch.bfloat16).items():
            specs[saved.removesuffix("weight") + part] = spec
    order = own_format.Q4.file_order(specs)
    header, position = {}, 0
    for name in order:
        dtype, shape = specs[name]
        stop = position + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": dtype_name(name, dtype),
            "shape": list(shape),
            "data_offsets": [position, stop],
        }
        position = stop
    start = header_bytes(header, own_format.ALIGNMENT)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + position)
    config.save_pretrained(folder)
    return len(start) + position


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux tells it"
)
def test_pixtral_12b_in_q4_is_loaded_in_a_few_megabytes(tmp_path: Path) -> None:
    size = _write_empty(tmp_path)
    assert 7.9e9 < size < 8.1e9
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    taken, parameters = (int(word) for word in done.stdout.split())
    assert parameters == 12_682_739_712
    assert taken < 60 * MB
