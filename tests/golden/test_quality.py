"""How much q4 and q8 lose on a matrix, beside what ggml's own types lose on it (golden/data/gguf)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vitrail.quant.formats.vitrail import quantize_own, relative_error

DATA = Path(__file__).parent / "data" / "gguf"
GGML = json.loads((DATA / "quality.json").read_text("utf-8"))
# At most so much times the error of which of ggml's types, and what it is today.
BOUNDS = [
    ("gaussian", "q4", "Q4_0", 1.0, 0.0751),
    ("student_t3", "q4", "Q4_K", 1.05, 0.0833),
    ("gaussian", "q8", "Q8_0", 1.01, 0.0055),
    ("student_t3", "q8", "Q8_0", 1.01, 0.0092),
]


@pytest.mark.parametrize(("matrix", "kind", "peer", "factor", "today"), BOUNDS)
def test_error_beside_ggml(matrix: str, kind: str, peer: str, factor: float, today: float) -> None:
    weight = load_file(DATA / "quality.safetensors")[matrix]
    error = relative_error(weight, quantize_own(weight, kind))
    assert error <= factor * GGML[matrix][peer]
    assert error <= today


@pytest.mark.parametrize("matrix", sorted(GGML))
def test_larger_groups_lose_more_and_bf16_nothing(matrix: str) -> None:
    weight = load_file(DATA / "quality.safetensors")[matrix]
    errors = [relative_error(weight, quantize_own(weight, "q4", group)) for group in (32, 64, 128)]
    assert errors == sorted(errors)
    assert relative_error(weight, quantize_own(weight, "bf16")) == 0.0
