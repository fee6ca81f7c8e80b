"""Every operator refuses what does not fit before it reads or writes: shapes, types, packed tensors, indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from vitrail.errors import CheckpointError, InputError
from vitrail.ops.cpu import (
    attention as cpu_attention,
    dense as cpu_dense,
    encode as cpu_encode,
    kv as cpu_kv,
    library,
    quant as cpu_quant,
    registry,
    rows as cpu_rows,
)
from vitrail.ops.linear import embedding
from vitrail.ops.weight import Layout, PackedWeight
from vitrail.quant.formats.vitrail import quantize_own

Arguments = dict[str, Any]
KERNELS = ("off", *library.available()[-1:])
L, A, G, K, BLOCK, BLOCKS, OUT, IN = 5, 4, 2, 16, 8, 4, 20, 64
INT8 = torch.int8


def rows(heads: int, count: int = L, width: int = K) -> Tensor:
    return torch.randn(count, heads, width, generator=torch.Generator().manual_seed(heads))


def cache(groups: int = G, width: int = K, dtype: Any = torch.float32, blocks: int = BLOCKS) -> Tensor:
    return torch.zeros(blocks, BLOCK, groups, width, dtype=dtype)


def flat4(nested: bool = False) -> PackedWeight:
    groups = OUT * IN // 64
    tensors = {
        "codes": torch.zeros(OUT * IN // 2, dtype=torch.uint8),
        "quant_map": torch.linspace(-1, 1, 16),
        "absmax": torch.zeros(groups, dtype=torch.uint8) if nested else torch.ones(groups),
    }
    if nested:
        tensors |= {
            "nested_map": torch.ones(256),
            "nested_absmax": torch.ones(1),
            "nested_offset": torch.zeros(()),
        }
    return PackedWeight(Layout.MAP4, (OUT, IN), 64, tensors)


@lru_cache(maxsize=8)
def packed(kind: str) -> PackedWeight:
    if kind in ("nf4", "nested"):
        return flat4(nested=kind == "nested")
    if kind == "int8":
        tensors = {"codes": torch.ones(OUT, IN, dtype=INT8), "scale": torch.ones(OUT)}
        return PackedWeight(Layout.INT8_ROWS, (OUT, IN), IN, tensors)
    return quantize_own(torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1)), kind)


def with_part(kind: str, name: str, change: Callable[[Tensor], Tensor | None]) -> PackedWeight:
    """A packed weight one of whose tensors is another, or missing."""
    weight = packed(kind)
    parts = {**weight.tensors, name: change(weight.tensors[name])}
    return weight.with_tensors({k: v for k, v in parts.items() if v is not None})


def shaped(kind: str, shape: tuple[int, int], group: int | None = None) -> PackedWeight:
    """A packed weight that says that it is larger, or grouped in another way."""
    weight = packed(kind)
    return replace(weight, shape=shape, group=weight.group if group is None else group)


def valid() -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """An operator's name → the operator and arguments that it takes."""
    offsets, lengths = torch.tensor([0, 2, L], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32)
    table = torch.tensor([[1, 0], [3, 2]], dtype=torch.int32)
    own = packed("q4")
    return {
        "attention": (cpu_attention.attention, {
            "q": rows(A), "k": rows(G), "v": rows(G), "q_offsets": offsets, "kv_lengths": lengths, "causal": True,
            "scale": 1.0, "window": None}),
        "attention_cached": (cpu_attention.attention_cached, {
            "q": rows(A), "keys": cache(), "values": cache(), "scales": None, "block_table": table,
            "q_offsets": offsets, "kv_lengths": lengths + 9, "scale": 1.0, "window": None}),
        "cache_write": (cpu_kv.cache_write, {
            "k": rows(G), "v": rows(G), "keys": cache(), "values": cache(), "scales": None, "slots": torch.arange(L)}),
        "cache_write_int8": (cpu_kv.cache_write, {
            "k": rows(G), "v": rows(G), "keys": cache(dtype=INT8), "values": cache(dtype=INT8),
            "scales": torch.zeros(2, BLOCKS, BLOCK, G), "slots": torch.arange(L)}),
        "rms_norm": (cpu_rows.rms_norm, {"x": torch.ones(3, 8), "weight": torch.ones(8), "eps": 1e-5}),
        "silu_gate": (cpu_rows.silu_gate, {"gate": torch.ones(3, 8), "up": torch.ones(3, 8)}),
        "rotate_pair": (cpu_rows.rotate_pair, {
            "q": rows(A), "k": rows(G), "cos": torch.ones(L, K), "sin": torch.ones(L, K)}),
        **{f"dense_products_{kind}": (cpu_dense.products, {
            "x": torch.ones(3, IN), "weights": [packed(kind)], "biases": [None]})
           for kind in ("nf4", "nested", "int8", "bf16")},
        "dense_linear": (cpu_dense.plain_products, {
            "x": torch.ones(3, IN).half(), "weights": [torch.ones(OUT, IN).half()],
            "biases": [torch.ones(OUT).half()]}),
        "dense_decode": (cpu_dense._decode, {
            "weight": packed("nf4"), "dtype": torch.float32, "first": 0, "last": OUT}),
        **{f"quant_linear_{kind}": (cpu_quant.quant_products, {
            "x": torch.ones(3, IN), "weights": [packed(kind)], "biases": [None]}) for kind in ("q4", "q8")},
        "quant_rows": (cpu_quant.quant_rows, {"weight": own, "ids": torch.tensor([0, OUT - 1])}),
        "encode_own": (cpu_encode.encode_own, {
            "matrix": torch.ones(OUT, IN), "kind": Layout.PANELS4.value, "levels": own.tensors["levels"], "group": 32}),
        "encode_fit": (cpu_encode.encode_fit, {
            "ratio": torch.ones(9, 32), "weights": torch.ones(9), "levels": torch.linspace(-63, 63, 16)}),
        "encode_map4": (cpu_encode.encode_map4, {
            "values": torch.ones(OUT * IN), "quant_map": torch.linspace(-1, 1, 16), "group": 64}),
        "encode_error": (cpu_encode.squared_error, {"matrix": torch.ones(OUT, IN), "packed": own}),
    }  # fmt: skip


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize("name", list(valid()))
def test_what_fits_is_taken(name: str, isa: str) -> None:
    call, arguments = valid()[name]
    with library.using(isa):
        call(*arguments.values())


WRONG: list[tuple[str, Arguments]] = [
    *(("attention", wrong) for wrong in (
        {"q": torch.ones(L, K)}, {"q": rows(3)}, {"q": rows(0)}, {"q": rows(A, width=8)}, {"k": rows(1)},
        {"k": rows(0), "v": rows(0)},
        {"v": rows(1)}, {"v": rows(G, L - 1)}, {"k": rows(G, L - 1), "v": rows(G, L - 1)},
        {"k": rows(G, width=8), "v": rows(G, width=8)},
        {"q_offsets": torch.tensor([0, L])}, {"q_offsets": torch.tensor([0.0, 2.0, L])},
        {"q_offsets": torch.tensor([[0, 2, L]])},
        {"q_offsets": torch.tensor([0, 2, 9])}, {"q_offsets": torch.tensor([1, 2, L])},
        {"q_offsets": torch.tensor([0, 7, L])},
        {"q_offsets": torch.tensor([0, 2, L + 2**32])}, {"kv_lengths": torch.tensor([2, 9])},
        {"kv_lengths": torch.tensor([2, -3])},
        {"kv_lengths": torch.tensor([2])}, {"window": 0}, {"window": -1})),
    *(("attention_cached", wrong) for wrong in (
        {"keys": cache(1), "values": cache(1), "q": rows(A, width=8)}, {"keys": cache(3), "values": cache(3)},
        {"values": cache(1)},
        {"values": cache(width=8)}, {"keys": cache(width=8), "values": cache(width=8)}, {"values": cache(blocks=1)},
        {"values": cache(dtype=torch.bfloat16)}, {"keys": cache()[0], "values": cache()[0]},
        {"keys": cache(dtype=INT8), "values": cache(dtype=INT8)}, {"scales": torch.ones(2, BLOCKS, BLOCK, G)},
        {"block_table": torch.tensor([1, 3])}, {"block_table": torch.tensor([[1, 0]])},
        {"block_table": torch.ones(2, 2)},
        {"block_table": torch.tensor([[1, 0], [3, BLOCKS]])}, {"block_table": torch.tensor([[-1, 0], [3, 2]])},
        {"block_table": torch.tensor([[1, 0], [3, 2**32]])}, {"block_table": torch.tensor([[1], [3]])},
        {"kv_lengths": torch.tensor([2, 17])}, {"kv_lengths": torch.tensor([1, 3])},
        {"kv_lengths": torch.tensor([2, 2**31 + 3])},
        {"q_offsets": torch.tensor([0, 2, 6])}, {"q_offsets": torch.tensor([0, -1, L])}, {"window": 0})),
    *((name, wrong) for name in ("cache_write", "cache_write_int8") for wrong in (
        {"k": rows(1), "v": rows(1)}, {"k": rows(4), "v": rows(4)}, {"v": rows(1)}, {"v": rows(G, 2)},
        {"k": rows(G)[0]},
        {"k": rows(G, width=8), "v": rows(G, width=8)}, {"slots": torch.arange(L - 1)}, {"slots": torch.arange(L + 1)},
        {"slots": torch.arange(L)[None]}, {"slots": torch.arange(L) * 1.0}, {"slots": torch.arange(L) - 1},
        {"slots": torch.arange(L) + BLOCKS * BLOCK - L + 1}, {"values": cache(1)}, {"values": cache(blocks=1)},
        {"values": cache(dtype=torch.float16)}, {"scales": torch.ones(2, BLOCKS, BLOCK, 1)},
        {"scales": torch.ones(2, 1, BLOCK, G)},
        {"scales": torch.ones(2, BLOCKS, BLOCK, G).half()})),
    ("cache_write_int8", {"scales": None}),
    *(("rms_norm", {"weight": weight}) for weight in (torch.ones(9), torch.ones(1), torch.ones(8, 1), torch.ones(()))),
    *(("silu_gate", {"up": up}) for up in (torch.ones(3, 9), torch.ones(8), torch.ones(2, 8), torch.ones(3, 1))),
    *(("rotate_pair", wrong) for wrong in (
        {"k": rows(G, 2)}, {"k": rows(G, width=8)}, {"q": rows(A)[0]}, {"cos": torch.ones(L, 8)},
        {"cos": torch.ones(1, K)},
        {"sin": torch.ones(L - 1, K)}, {"sin": torch.ones(K)},
        {"q": rows(A, width=3), "k": rows(G, width=3), "cos": torch.ones(L, 3), "sin": torch.ones(L, 3)})),
    *(("dense_linear", wrong) for wrong in (
        {"weights": [torch.ones(OUT, IN + 1).half()]}, {"weights": [torch.ones(IN).half()]},
        {"biases": [torch.ones(1).half()]},
        {"biases": [torch.ones(OUT + 1).half()]}, {"biases": []})),
    *((f"{name}_{kind}", {"x": x}) for name, kind in (("dense_products", "nf4"), ("quant_linear", "q8"))
      for x in (torch.ones(3, IN + 32), torch.ones(3, IN // 2), torch.ones(IN))),
    *((name, {"weights": []}) for name in ("dense_linear", "dense_products_nf4", "quant_linear_q8")),
    *((name, {"weights": weights}) for name, weights in (
        ("dense_products_nf4", [packed("nf4"), packed("int8")]),
        ("quant_linear_q4", [packed("q4"), quantize_own(torch.ones(OUT, IN), "q4", 64)]))),
    *((f"{name}_{kind}", {"biases": biases}) for name, kind in (("dense_products", "int8"), ("quant_linear", "q4"))
      for biases in ([], [torch.ones(OUT - 1)], [torch.ones(1)])),
    *(("dense_decode", wrong) for wrong in (
        {"last": OUT + 1}, {"first": -1}, {"first": 5, "last": 4}, {"weight": packed("q4")})),
    *(("quant_rows", {"ids": ids}) for ids in (torch.tensor(3), torch.tensor([[3]]))),
    *(("encode_own", wrong) for wrong in (
        {"matrix": torch.ones(IN)}, {"matrix": torch.ones(OUT, IN + 1)}, {"levels": None}, {"levels": torch.ones(15)},
        {"kind": Layout.PANELS8.value}, {"kind": Layout.MAP4.value}, {"group": 0}, {"group": -32}, {"group": 128})),
    *(("encode_fit", wrong) for wrong in (
        {"ratio": torch.ones(32)}, {"weights": torch.ones(8)}, {"weights": torch.ones(9, 32)},
        {"levels": torch.ones(15)})),
    *(("encode_map4", wrong) for wrong in (
        {"values": torch.ones(OUT, 2 * IN)[:, :IN]}, {"quant_map": torch.ones(15)}, {"group": 0}, {"group": -64})),
    *(("encode_error", {"matrix": torch.ones(shape)}) for shape in ((OUT + 1, IN), (OUT, 32), (OUT * IN,))),
]  # fmt: skip


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_what_does_not_fit_is_refused(name: str, wrong: Arguments, isa: str) -> None:
    call, arguments = valid()[name]
    arguments.update(wrong)
    written = [arguments[key] for key in ("keys", "values", "scales") if arguments.get(key) is not None]
    before = [part.clone() for part in written]
    with library.using(isa), pytest.raises(InputError):
        call(*arguments.values())
    assert all(torch.equal(part, was) for part, was in zip(written, before, strict=True))


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize("name", ["cache_write", "cache_write_int8"])
def test_slots_of_32_bits_are_those_of_64(name: str, isa: str) -> None:
    written = []
    for kind in (torch.int64, torch.int32):
        call, arguments = valid()[name]
        arguments["slots"] = arguments["slots"].to(kind)
        with library.using(isa):
            call(*arguments.values())
        written.append(arguments["keys"])
    assert torch.equal(*written)
    assert bool(written[0].any())


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize("wrong", [-1, OUT, 31, 2**31, -(2**40)])
def test_a_row_that_a_packed_table_does_not_have_is_refused(wrong: int, isa: str) -> None:
    """Rows OUT … 31 lie in the padding of its last panel."""
    ids = torch.tensor([0, wrong])
    with library.using(isa):
        for kind in ("q4", "q8", "nf4", "int8"):
            with pytest.raises(IndexError, match=f"lie in 0 … {OUT - 1}"):
                embedding(ids, packed(kind))


@pytest.mark.parametrize(
    "wrong",
    [{"forms": "panels5 codes scales levels"}, {"forms": "panels4 codes scales"}, {"parts": []}, {"sizes": [OUT, IN, 32]},
     {"sizes": [OUT, IN, 32, 9]}, {"forms": "", "parts": [], "sizes": []}],
)  # fmt: skip
def test_a_schema_s_packed_weights_that_do_not_go_together_are_refused(wrong: Arguments) -> None:
    forms, parts, sizes = registry.flatten([packed("q4")])
    given = {"forms": forms, "parts": parts, "sizes": sizes, **wrong}
    with pytest.raises((InputError, CheckpointError)):
        torch.ops.vitrail.quant_linear(torch.ones(3, IN), *given.values(), [None])


def shorter(x: Tensor) -> Tensor:
    return x[:-1].contiguous()


UNFIT: list[tuple[str, PackedWeight]] = [
    *((kind, with_part(kind, name, change)) for kind in ("q4", "q8", "nf4", "nested", "int8", "bf16")
      for name in packed(kind).tensors if name != "nested_offset"
      for change in (shorter, lambda x: x.to(torch.int16), lambda x: None)),
    ("nested", with_part("nested", "nested_offset", lambda x: x.expand(2))),
    *((kind, shaped(kind, (OUT + 32, IN))) for kind in ("q4", "q8", "nf4", "nested", "int8", "bf16")),
    *((kind, shaped(kind, (OUT, IN), group)) for kind in ("q4", "q8") for group in (0, 48, 64)),
    *((kind, shaped(kind, (OUT, IN), 32)) for kind in ("nf4", "nested")),
]  # fmt: skip


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize(("kind", "weight"), UNFIT)
def test_packed_tensors_that_do_not_fit_their_shape_are_refused(
    kind: str, weight: PackedWeight, isa: str
) -> None:
    own = kind in ("q4", "q8")
    multiply = cpu_quant.quant_products if own else cpu_dense.products
    read = cpu_quant.quant_rows if own else cpu_dense.products
    x = torch.ones(3, IN)
    with library.using(isa):
        with pytest.raises(CheckpointError, match="do not fit"):
            multiply(x, [weight], [None])
        with pytest.raises(CheckpointError, match="do not fit"):
            read(*((weight, torch.tensor([0])) if own else (x, [weight], [None])))
        with pytest.raises(CheckpointError, match="do not fit"):
            cpu_encode.squared_error(torch.ones(weight.shape), weight)


# --- any indices ----------------------------------------------------------------------------------------------------

numbers = st.integers(-3, 40)


def fits(rows: int, offsets: list[int], lengths: list[int], tables: list[list[int]]) -> bool:
    """Whether a step's numbers are those of rows and blocks that exist."""
    news = [stop - start for start, stop in pairwise(offsets)]
    used = [table[: -(-length // BLOCK)] for table, length in zip(tables, lengths, strict=True)]
    return (
        offsets[0] == 0
        and offsets[-1] == rows
        and all(0 <= new <= length for new, length in zip(news, lengths, strict=True))
        and all(length <= BLOCK * len(table) for table, length in zip(tables, lengths, strict=True))
        and all(0 <= block < BLOCKS for blocks in used for block in blocks)
    )


@st.composite
def steps(draw: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """Offsets, lengths and tables of which at most one number is wild: half of all fit."""
    lengths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=3))
    news = [draw(st.integers(0, length)) for length in lengths]
    offsets = [sum(news[:n]) for n in range(len(news) + 1)]
    tables = [draw(st.lists(st.integers(0, BLOCKS - 1), min_size=2, max_size=2)) for _ in lengths]
    for numbers_of in draw(st.sampled_from([[], [offsets], [lengths], tables])):
        numbers_of[draw(st.integers(0, len(numbers_of) - 1))] = draw(numbers)
        break
    return offsets, lengths, tables


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(step=steps(), isa=st.sampled_from(KERNELS), kind=st.sampled_from([torch.int32, torch.int64]))
def test_any_segments_and_blocks(
    step: tuple[list[int], list[int], list[list[int]]], isa: str, kind: torch.dtype
) -> None:
    offsets, lengths, tables = step
    count = max(0, min(offsets[-1], 48))
    call, arguments = valid()["attention_cached"]
    arguments |= {
        "q": rows(A, count), "q_offsets": torch.tensor(offsets, dtype=kind),
        "kv_lengths": torch.tensor(lengths, dtype=kind), "block_table": torch.tensor(tables, dtype=kind),
    }  # fmt: skip
    with library.using(isa):
        if fits(count, offsets, lengths, tables):
            assert bool(call(*arguments.values()).isfinite().all())
        else:
            with pytest.raises(InputError, match="do not fit its tensors"):
                call(*arguments.values())


@settings(max_examples=100, deadline=None)
@given(slots=st.lists(numbers, min_size=L, max_size=L), isa=st.sampled_from(KERNELS))
def test_any_slots(slots: list[int], isa: str) -> None:
    call, arguments = valid()["cache_write"]
    arguments["slots"] = torch.tensor(slots)
    with library.using(isa):
        if all(0 <= slot < BLOCK * BLOCKS for slot in slots):
            call(*arguments.values())
            return
        with pytest.raises(InputError, match="do not fit its tensors"):
            call(*arguments.values())
    assert not arguments["keys"].any() and not arguments["values"].any()
