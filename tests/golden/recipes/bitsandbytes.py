"""data/bitsandbytes: weights as bitsandbytes 0.50.2 stores and decodes them on a CPU, with torch 2.13.0.

Made from sources.safetensors (Gaussian weights with a column profile and a few outliers, drawn with seed 5 by a program
that is not kept), the biases of weights.safetensors, and cases.json. pixtral-nf4 was saved by transformers 5.23; with
4.57, its packed weights are made anew here, its config.json is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import DATA

LIBRARIES = {"bitsandbytes": "0.50.2", "torch": "2.13.0"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make(folder: Path) -> None:
    """Write weights.safetensors and expected.safetensors."""
    data = DATA / "bitsandbytes"
    sources, stored = load_file(data / "sources.safetensors"), load_file(data / "weights.safetensors")
    weights: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for case in json.loads((data / "cases.json").read_text("utf-8")):
        dtype = DTYPES[case["dtype"]]
        weight, x = sources[case["source"]].to(dtype), sources[case["input"]].to(dtype)
        bias = stored.get(f"{case['name']}.bias")
        state, results = (int8 if case["quant_type"] == "int8" else four_bit)(case, weight, bias, x)
        weights |= {f"{case['name']}.{key}": value for key, value in state.items()}
        expected |= {f"{case['name']}.{key}": value for key, value in results.items()}
    (folder / "bitsandbytes").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "bitsandbytes" / "weights.safetensors")
    save_file(expected, folder / "bitsandbytes" / "expected.safetensors")


def four_bit(
    case: dict[str, Any], weight: Tensor, bias: Tensor | None, x: Tensor
) -> tuple[dict[str, Tensor], ...]:
    """The state of a Linear4bit before any forward pass; decoded by the library's generic implementation.

    Its AVX-512 implementation gives other, wrong numbers where columns are even and no multiple of the block.
    """
    storage = getattr(torch, case["storage"])
    packed = bitsandbytes.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=case["blocksize"],
        compress_statistics=case["double_quant"],
        quant_type=case["quant_type"],
        quant_storage=storage,
    ).to("cpu")
    layer = bitsandbytes.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = packed
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias)
    state = packed.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = bitsandbytes.functional.dequantize_blockwise(absmax, state.state2) + state.offset
    codes = packed.data.view(torch.uint8).reshape(-1)
    decode = _dequantize_4bit_compute.__wrapped__  # without torch.compile
    decoded = decode(codes, absmax.float(), state.code, state.blocksize, state.shape, state.dtype)
    return dict(layer.state_dict()), {
        "dequantized": decoded,
        "output": torch.nn.functional.linear(x, decoded, bias),
    }


def int8(
    case: dict[str, Any], weight: Tensor, bias: Tensor | None, x: Tensor
) -> tuple[dict[str, Tensor], ...]:
    """The state of a Linear8bitLt, and its answers with two thresholds of outliers."""
    results: dict[str, Tensor] = {}
    for threshold in (0.0, 6.0):
        layer = bitsandbytes.nn.Linear8bitLt(
            weight.shape[1],
            weight.shape[0],
            bias=bias is not None,
            has_fp16_weights=False,
            threshold=threshold,
        )
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(
            "cpu"
        )
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias)
        layer.eval()
        state = {key: value.clone() for key, value in layer.state_dict().items()}
        with torch.no_grad():
            results[f"output_threshold{threshold:.0f}"] = layer(x)
    decoded = state["weight"].float() * state["SCB"][:, None] * 0.007874015718698502
    return state, {"dequantized": decoded, **results}
