"""Threads are chosen by the size of the products: small ones are the calling thread's alone, with the same bits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.invariants.test_native_dense import weight_of
from vitrail.model.causal import CausalModel
from vitrail.ops import threads
from vitrail.ops.cpu import attention as cpu_attention, dense as cpu_dense, library, rows as cpu_rows
from vitrail.ops.linear import linear
from vitrail.quant.formats.vitrail import quantize_own

kernels = pytest.mark.skipif(not library.available(), reason="no kernels were built")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def shared(call: Any, *arguments: Any) -> int:
    """How many jobs of a call were given to several threads."""
    opened: Any = library.library()
    opened.vt_shared_jobs.restype = ctypes.c_int64
    before = opened.vt_shared_jobs()
    call(*arguments)
    return int(opened.vt_shared_jobs() - before)


def heads(rows: int, count: int) -> Tensor:
    return torch.randn(rows, count, 32)


def attend(rows: int) -> tuple[Any, ...]:
    q, k, offsets = heads(rows, 6), heads(rows, 2), torch.tensor([0, rows])
    return cpu_attention.attention, q, k, k, offsets, torch.tensor([rows]), True, 1.0, None


@kernels
@pytest.mark.parametrize("kind", ["plain", "nf4", "int8", "q4", "q8"])
def test_a_small_product_is_the_calling_threads_alone_and_a_large_one_is_shared(kind: str) -> None:
    """Matrices of the embedded reader, and of a model with a width of a thousand."""

    def product(out: int, columns: int, rows: int) -> tuple[Any, ...]:
        if kind in ("q4", "q8"):
            return linear, torch.ones(rows, columns), quantize_own(torch.randn(out, columns), kind)
        weight = weight_of(kind, out, columns, torch.bfloat16)
        x = torch.ones(rows, columns, dtype=torch.bfloat16)
        if isinstance(weight, Tensor):
            return cpu_dense.plain_products, x, [weight], [None]
        return linear, x, weight

    with torch.inference_mode():
        for rows in (1, 3):
            assert shared(*product(448, 192, rows)) == 0
        assert shared(*product(1024, 1024, 1)) > 0
        assert shared(*product(448, 192, 2000)) > 0


@kernels
def test_small_rows_and_attention_are_the_calling_threads_alone() -> None:
    ones, wide = torch.ones(192), torch.ones(4096)
    assert shared(cpu_rows.rms_norm, torch.ones(200, 192), ones, 1e-5) == 0
    assert shared(cpu_rows.rms_norm, torch.ones(2000, 4096), wide, 1e-5) == 1
    assert shared(cpu_rows.silu_gate, torch.ones(3, 448), torch.ones(3, 448)) == 0
    assert shared(cpu_rows.silu_gate, torch.ones(2000, 448), torch.ones(2000, 448)) == 1
    assert shared(*attend(20)) == 0
    assert shared(*attend(1000)) == 1


@pytest.mark.parametrize(("rows", "weights", "alone"), [
    (1, 192 * 448, True), (3, 192 * 448, True), (400, 192 * 448, True), (2000, 192 * 448, False),
    (1, 1 << 20, True), (1, 1 << 21, False), (0, 1 << 21, False), (1, 5120 * 14336, False)])  # fmt: skip
def test_pytorchs_threads_are_a_function_of_the_sizes(rows: int, weights: int, alone: bool) -> None:
    with threads.fitting(rows, weights):
        assert torch.get_num_threads() == (1 if alone else 2)
    assert torch.get_num_threads() == 2


def test_threads_are_given_back_after_an_error_and_nested_blocks_keep_the_kernels() -> None:
    with threads.fitting(1, 1):
        with threads.fitting(1, 1):
            library.library()
            assert getattr(library._HELD, "threads", 0) == 2
        assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), threads.fitting(1, 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    assert library._HELD.threads == 0


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_a_small_model_runs_on_the_calling_thread_with_the_same_bits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family)
    side = model.config.vision_config.patch_size * getattr(model.config, "spatial_merge_size", 1)
    ids = torch.tensor([[model.image_token_id] * 6 + [7, 8]])
    given = {
        "pixel_values": torch.ones(1, 3, 2 * side, 3 * side),
        "image_sizes": torch.tensor([(2 * side, 3 * side)]),
    }
    seen = set()
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    assert isinstance(model, CausalModel)
    with torch.inference_mode():
        logits = model(ids, **given).logits
        assert seen == {1}
        monkeypatch.setattr(threads, "LEAST", 0)
        assert torch.equal(model(ids, **given).logits, logits)
    assert seen == {1, 2}
