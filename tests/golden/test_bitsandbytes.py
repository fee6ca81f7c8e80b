"""quant/formats/bitsandbytes.py against what bitsandbytes 0.50.2 wrote and computed (golden/data/bitsandbytes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitrail import LlavaForConditionalGeneration
from vitrail.ops.cpu.dense import decoded_products
from vitrail.ops.kernels import kernel_for
from vitrail.ops.linear import linear
from vitrail.ops.weight import PackedWeight, dequantize
from vitrail.quant import bitsandbytes_cuda
from vitrail.quant.bitsandbytes_codes import nested_map, quantize_4bit, quantize_int8
from vitrail.quant.formats import WeightFormat, recognize
from vitrail.quant.formats.bitsandbytes import INT8, BitsAndBytes4

DATA = Path(__file__).parent / "data" / "bitsandbytes"
CASES = {case["name"]: case for case in json.loads((DATA / "cases.json").read_text("utf-8"))}
FOUR_BIT = [name for name, case in CASES.items() if case["quant_type"] != "int8"]
EIGHT_BIT = [name for name, case in CASES.items() if case["quant_type"] == "int8"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, Tensor]]:
    return {name: load_file(DATA / f"{name}.safetensors") for name in ("weights", "expected", "sources")}


def _stored(files: dict[str, dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    parts = {
        key.removeprefix(f"{name}."): value
        for key, value in files["weights"].items()
        if key.startswith(f"{name}.")
    }
    parts.pop("bias", None)
    return parts


def format_of(parts: dict[str, Tensor]) -> WeightFormat:
    format = recognize(parts)
    assert format is not None
    return format


def from_state(name: str, parts: dict[str, Tensor]) -> PackedWeight:
    """The files say the shape."""
    return format_of(parts).from_state(name, parts, (0, 0), torch.float32)


def _raw(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert {key: _raw(value) for key, value in mine.items()} == {
        key: _raw(value) for key, value in theirs.items()
    }


@pytest.mark.parametrize("name", FOUR_BIT)
def test_quantising_gives_the_same_bytes(files: dict[str, dict[str, Tensor]], name: str) -> None:
    case = CASES[name]
    weight = files["sources"][case["source"]].to(DTYPES[case["dtype"]])
    packed = quantize_4bit(weight, case["quant_type"], nested=case["double_quant"], group=case["blocksize"])
    format = BitsAndBytes4(case["quant_type"], case["double_quant"], getattr(torch, case["storage"]))
    _same(format.to_state(packed), _stored(files, name))
    assert format_of(_stored(files, name)) == format


@pytest.mark.slow
def test_the_nested_map_is_the_same_on_every_processor(files: dict[str, dict[str, Tensor]]) -> None:
    """Also where PyTorch's own linspace has no AVX2, and rounds in other places."""
    code = (
        "from vitrail.quant.bitsandbytes_codes import nested_map; print(nested_map().numpy().tobytes().hex())"
    )
    where = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=where, capture_output=True, text=True, check=True
    )
    stored = [parts for key, parts in files["weights"].items() if key.endswith("weight.nested_quant_map")]
    assert stored
    for wanted in (nested_map(), *stored):
        assert found.stdout.strip() == wanted.numpy().tobytes().hex()


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_quantising_to_8_bits_gives_the_same_bytes(files: dict[str, dict[str, Tensor]], name: str) -> None:
    case = CASES[name]
    _same(
        INT8.to_state(quantize_int8(files["sources"][case["source"]].to(DTYPES[case["dtype"]]))),
        _stored(files, name),
    )


@pytest.mark.parametrize("name", CASES)
def test_reading_and_writing_gives_the_same_bytes(files: dict[str, dict[str, Tensor]], name: str) -> None:
    parts = _stored(files, name)
    _same(format_of(parts).to_state(from_state(name, parts)), parts)


@pytest.mark.parametrize("name", CASES)
def test_decoding_is_bit_for_bit(files: dict[str, dict[str, Tensor]], name: str) -> None:
    packed = from_state(name, _stored(files, name))
    wanted = files["expected"][f"{name}.dequantized"]
    whole = dequantize(packed, packed.dtype)
    assert whole.dtype == wanted.dtype
    assert torch.equal(whole, wanted)
    for rows in (slice(0, 1), slice(3, 9), slice(30, None), slice(-1, None), slice(5, 5)):
        assert torch.equal(dequantize(packed, packed.dtype, rows), wanted[rows])


@pytest.mark.parametrize("name", FOUR_BIT)
def test_products(files: dict[str, dict[str, Tensor]], name: str) -> None:
    """Equal but for the order of additions in the machine's matrix product: within the dtype's rounding."""
    packed = from_state(name, _stored(files, name))
    x = files["sources"][CASES[name]["input"]].to(packed.dtype)
    got = linear(x, packed, files["weights"].get(f"{name}.bias"))
    wanted = files["expected"][f"{name}.output"]
    step = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[packed.dtype]
    assert got.dtype == wanted.dtype
    assert (got - wanted).abs().max() <= step * wanted.abs().max()


@pytest.mark.parametrize("name", [name for name in FOUR_BIT if CASES[name]["blocksize"] <= 64])
def test_what_a_gpu_calls(files: dict[str, dict[str, Tensor]], name: str) -> None:
    """The call that a GPU's products make, here on a CPU: bitsandbytes understands our parts as we do."""
    pytest.importorskip("bitsandbytes")
    packed = from_state(name, _stored(files, name))
    if packed.shape[1] % packed.group:
        pytest.skip("bitsandbytes' own kernel for CPUs is wrong for such a matrix")
    x = torch.randn(3, packed.shape[1], generator=torch.Generator().manual_seed(0)).to(packed.dtype)
    (got,) = _on_a_gpu(x, packed)
    step = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[packed.dtype]
    wanted = x.double() @ files["expected"][f"{name}.dequantized"].double().T
    assert got.dtype == x.dtype
    assert (got - wanted).abs().max() <= step * wanted.abs().max()


def _on_a_gpu(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> list[Tensor]:
    return kernel_for(packed.layout, torch.device("cuda"), decoded_products)(x, [packed], [bias])


def test_a_gpu_without_bitsandbytes_decodes(
    files: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = from_state("x", _stored(files, "nf4_bs64_bf16"))
    x = torch.randn(3, packed.shape[1]).bfloat16()
    wanted = torch.nn.functional.linear(x, dequantize(packed, torch.bfloat16))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    bitsandbytes_cuda._library.cache_clear()
    try:
        assert torch.equal(_on_a_gpu(x, packed)[0], wanted)
    finally:
        bitsandbytes_cuda._library.cache_clear()


def test_a_gpu_hands_bitsandbytes_the_parts_as_they_are(
    files: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the library: nothing is copied or decoded on the way; int8 never gets there."""
    calls: list[tuple[Any, ...]] = []

    def matmul_4bit(x: Tensor, codes: Tensor, quant_state: SimpleNamespace, bias: Tensor | None) -> Tensor:
        calls.append((codes, quant_state, bias))
        return x.new_zeros(x.shape[0], quant_state.shape[0])

    library = SimpleNamespace(functional=SimpleNamespace(QuantState=SimpleNamespace), matmul_4bit=matmul_4bit)
    monkeypatch.setattr(bitsandbytes_cuda, "_library", lambda: library)
    nested = next(name for name in FOUR_BIT if CASES[name]["double_quant"])
    packed = from_state("x", _stored(files, nested))
    bias = torch.zeros(packed.shape[0])
    _on_a_gpu(torch.randn(2, packed.shape[1]), packed, bias)
    ((codes, state, given),) = calls
    assert codes.data_ptr() == packed.tensors["codes"].data_ptr()
    assert given is bias
    assert (state.shape, state.blocksize, state.quant_type) == (
        packed.shape,
        packed.group,
        CASES[nested]["quant_type"],
    )
    assert state.absmax is packed.tensors["absmax"]
    assert state.state2.absmax is packed.tensors["nested_absmax"]
    assert state.offset is packed.tensors["nested_offset"]
    eight = from_state("x", _stored(files, EIGHT_BIT[0]))
    _on_a_gpu(torch.randn(2, eight.shape[1]), eight)
    assert len(calls) == 1


@pytest.mark.parametrize("case", ["text_only", "single"])
def test_a_saved_model_gives_the_recorded_logits(case: str) -> None:
    """float32 over the 4-bit weights of a checkpoint that transformers saved; measured: 1.6e-6."""
    folder = DATA / "pixtral-nf4"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    inputs = {
        key.removeprefix(f"{case}."): value
        for key, value in load_file(folder / "inputs.safetensors").items()
        if key.startswith(f"{case}.")
    }
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        output = model(**inputs)
    wanted = expected[f"{case}.logits"]
    assert (output.logits[:, -16:] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    if case == "single":
        images = expected["single.image_hidden_states"]
        got = torch.as_tensor(output.image_hidden_states).reshape(images.shape)
        assert (got - images).abs().max() <= 1e-5 * images.abs().max()


def test_a_saved_model_is_saved_as_it_was(tmp_path: Path) -> None:
    folder = DATA / "pixtral-nf4"
    LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto").save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    theirs = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["quantization_config"] == theirs


def test_a_packed_weight_decodes_to_its_own_type_first(files: dict[str, dict[str, Tensor]]) -> None:
    packed = from_state("x", _stored(files, "nf4_bs64_bf16"))
    assert isinstance(packed, PackedWeight)
    assert torch.equal(dequantize(packed, torch.float32), dequantize(packed, torch.bfloat16).float())
