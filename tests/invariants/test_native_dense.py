"""Products with plain, NF4, FP4, int8 and panelled matrices: of exactly the decoded weights, each row by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import vitrail
from tests import tiny
from tests.invariants.test_native_quant import same, threads
from vitrail.model.fused import FusedBlocks
from vitrail.ops import packing_layout
from vitrail.ops.cpu import dense as cpu_dense, library
from vitrail.ops.linear import linear, linear_group, linear_input_grad
from vitrail.ops.weight import Layout, PackedWeight, Weight, dequantize
from vitrail.quant.bitsandbytes_codes import quantize_4bit, quantize_int8

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ISAS = library.available() or ("off",)
KINDS = ("plain", "nf4", "nested", "fp4", "int8", "bf16")
# Half a step of a result beside 1: what rounding it once costs.
HALF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


def weight_of(
    kind: str, out: int, columns: int, dtype: torch.dtype, *, group: int = 64, seed: int = 0
) -> Weight:
    """A random matrix of the kind, with rows of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    plain = (torch.randn(out, columns, generator=g) * 2.0 ** torch.randint(-6, 3, (out, 1), generator=g)).to(
        dtype
    )
    if kind == "plain":
        return plain
    if kind == "int8":
        return quantize_int8(plain)
    if kind == "bf16":
        codes = {"codes": packing_layout.pack_pairs(plain.bfloat16())}
        return PackedWeight(Layout.PANELS16, (out, columns), 1, codes, torch.bfloat16)
    return quantize_4bit(plain, "fp4" if kind == "fp4" else "nf4", nested=kind == "nested", group=group)


def products(x: Tensor, weights: list[Weight], biases: list[Tensor | None]) -> list[Tensor]:
    """By the kernel, whatever the processor would choose."""
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    if packed:
        return cpu_dense.products(x, packed, biases)
    return cpu_dense.plain_products(x, [w for w in weights if isinstance(w, Tensor)], biases)


def bound(x: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor) -> Tensor:
    """How far a float32 sum in any order, rounded once to x's type, may lie from the exact product."""
    most = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        most = most + bias.double().abs()
    tiny = torch.finfo(x.dtype).tiny * 2.0**-9
    # Lanes and blocks keep chains short: 512 / lanes + blocks + their joining, far fewer than 256.
    return 256 * 2.0**-24 * most + HALF[x.dtype] * 2 * wanted.abs() + tiny


shapes = {
    "isa": st.sampled_from(ISAS),
    "kind": st.sampled_from(KINDS),
    "dtype": st.sampled_from(DTYPES),
    "out": st.integers(1, 60),
    "columns": st.one_of(st.integers(1, 140), st.sampled_from([64, 128, 512, 576, 1100])),
    "group": st.sampled_from([32, 64, 256, 4096]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=80)
@given(**shapes, rows=st.integers(1, 110), count=st.integers(1, 3), bias=st.booleans())
def test_products_are_those_of_the_decoded_weight(
    isa: str,
    kind: str,
    dtype: torch.dtype,
    out: int,
    columns: int,
    group: int,
    seed: int,
    rows: int,
    count: int,
    bias: bool,
) -> None:
    weight = weight_of(kind, out, columns, dtype, group=group, seed=seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(columns, rows, generator=g).to(dtype).T  # not contiguous
    added = torch.randn(out, generator=g).to(dtype) if bias else None
    with library.using(isa), threads(count):
        (got,) = products(x, [weight], [added])
    plain = weight if isinstance(weight, Tensor) else dequantize(weight, dtype)
    wanted = x.double() @ plain.double().T + (0.0 if added is None else added.double())
    assert got.dtype == dtype
    assert bool(((got.double() - wanted).abs() <= bound(x, plain, added, wanted)).all())


@settings(max_examples=60)
@given(**shapes, rows=st.integers(2, 110), count=st.integers(2, 3))
def test_a_row_is_the_same_in_any_company(
    isa: str,
    kind: str,
    dtype: torch.dtype,
    out: int,
    columns: int,
    group: int,
    seed: int,
    rows: int,
    count: int,
) -> None:
    weight = weight_of(kind, out, columns, dtype, group=group, seed=seed)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    row = seed % rows
    with library.using(isa):
        with threads(1):
            alone = products(x[row : row + 1], [weight], [None])[0][0]
        with threads(count):
            together, again = products(x, [weight, weight], [None, None])
    assert torch.equal(together[row], alone)
    assert torch.equal(together, again)


@settings(max_examples=60)
@given(**shapes, used=st.sampled_from(DTYPES), rows=st.sampled_from([1, 2, 9, 100]))
def test_activations_of_another_type_meet_the_weight_as_that_type_holds_it(
    isa: str,
    kind: str,
    dtype: torch.dtype,
    out: int,
    columns: int,
    group: int,
    seed: int,
    used: torch.dtype,
    rows: int,
) -> None:
    """A float16 weight under bfloat16 activations is rounded twice, by the kernel as by the definition."""
    weight = weight_of(kind, out, columns, dtype, group=group, seed=seed)
    if isinstance(weight, Tensor):
        return
    weight = weight.with_tensors(weight.tensors, dtype)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(used)
    with library.using(isa), no_decoding():
        (got,) = cpu_dense.products(x, [weight], [None])
        (alone,) = cpu_dense.products(x[-1:], [weight], [None])
    plain = dequantize(weight, used)
    wanted = x.double() @ plain.double().T
    assert bool(((got.double() - wanted).abs() <= bound(x, plain, None, wanted)).all())
    assert torch.equal(got[-1:], alone)


@contextmanager
def no_decoding() -> Iterator[list[int]]:
    """Within the block decoding a whole matrix is an error; yields the rows of every packed matrix's product."""
    calls: list[int] = []
    run = cpu_dense._run

    def counted(x: Tensor, matrices: list[Any], biases: list[Any]) -> list[Tensor]:
        calls.extend(x.shape[0] for matrix in matrices if matrix.format)
        return run(x, matrices, biases)

    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a whole matrix was decoded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_dense, "_run", counted)
        patch.setattr(cpu_dense, "dequantize", refused)
        patch.setattr(cpu_dense, "_decode", refused)
        yield calls


COMPUTE = (torch.float32, torch.bfloat16, torch.float16, None)
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("form", BITSANDBYTES)
def test_every_model_dtype_and_compute_dtype_meets_the_kernels(
    form: str, compute: torch.dtype | None, plain_folder: Path
) -> None:
    """The products of all fourteen layers, in a prompt and in a step of one id: none decodes its matrix."""
    config = vitrail.BitsAndBytesConfig(**BITSANDBYTES[form], bnb_4bit_compute_dtype=compute)
    ids = torch.arange(20)[None]
    for dtype in (None, "auto", *DTYPES):
        model = vitrail.MistralForCausalLM.from_pretrained(
            plain_folder, quantization_config=config, **({} if dtype is None else {"dtype": dtype})
        )
        with torch.inference_mode(), no_decoding() as calls, pytest.MonkeyPatch.context() as patch:
            patch.setattr(FusedBlocks, "run", lambda *_: None)  # one call for all products, which counts none
            prompt = model(ids, use_cache=True)
            step = model(torch.tensor([[3]]), past_key_values=prompt.past_key_values)
        assert calls == [20] * 14 + [1] * 14
        with torch.inference_mode(), library.using("off"):
            wanted = model(torch.cat([ids, torch.tensor([[3]])], 1)).logits
        got = torch.cat([prompt.logits, step.logits], 1)
        # Products are in the compute type, but float32 rows are never rounded.
        used = compute if compute is not None and model.dtype != torch.float32 else model.dtype
        eps = max(torch.finfo(model.dtype).eps, torch.finfo(used).eps)
        assert (got - wanted).abs().max() <= 40 * eps * wanted.abs().max()


@pytest.mark.parametrize("kind", ["nf4", "nested", "int8"])
def test_float64_rows_meet_a_matrix_that_the_kernel_decodes(kind: str) -> None:
    weight, x = weight_of(kind, 40, 96, torch.bfloat16), torch.randn(3, 96, dtype=torch.float64)
    assert isinstance(weight, PackedWeight)
    wanted = x @ dequantize(weight, torch.float64).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_dense, "dequantize", None)
        assert torch.equal(cpu_dense.products(x, [weight], [None])[0], wanted)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of two layers, stored in bfloat16."""
    folder = tmp_path_factory.mktemp("plain")
    config = vitrail.MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, dtype="bfloat16",
    )  # fmt: skip
    tiny.randomize(vitrail.MistralForCausalLM(config)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@settings(max_examples=60)
@given(**shapes, result=st.sampled_from(DTYPES), first=st.integers(0, 30), length=st.integers(0, 30))
def test_decoding_equals_the_definition_in_every_bit(
    isa: str,
    kind: str,
    dtype: torch.dtype,
    out: int,
    columns: int,
    group: int,
    seed: int,
    result: torch.dtype,
    first: int,
    length: int,
) -> None:
    weight = weight_of(kind, out, columns, dtype, group=group, seed=seed)
    if isinstance(weight, Tensor):
        return
    rows = slice(min(first, out), min(first + length, out))
    with library.using(isa):
        got = cpu_dense.decode(weight, result, rows)
    assert torch.equal(got, dequantize(weight, result, rows))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["nf4", "nested", "int8"])
def test_scales_that_are_no_numbers(isa: str, kind: str) -> None:
    weight = weight_of(kind, 4, 128, torch.bfloat16)
    assert isinstance(weight, PackedWeight)
    part = {"nf4": "absmax", "nested": "nested_absmax", "int8": "scale"}[kind]
    for bits in (0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0x7F800001):
        tensors = {**weight.tensors, part: weight.tensors[part].clone()}
        tensors[part].view(torch.int32)[0] = bits
        broken = weight.with_tensors(tensors)
        wanted = dequantize(broken, torch.float32)
        with library.using(isa):
            got = cpu_dense.decode(broken, torch.float32)
        assert same(got, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_a_map_of_no_numbers(isa: str) -> None:
    weight = weight_of("nf4", 4, 128, torch.bfloat16)
    assert isinstance(weight, PackedWeight)
    weight.tensors["quant_map"].view(torch.int32)[3:6] = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7F800000])
    wanted = dequantize(weight, torch.float32)
    with library.using(isa):
        assert same(cpu_dense.decode(weight, torch.float32), wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_a_group_is_each_alone(isa: str) -> None:
    x = torch.randn(5, 192).bfloat16()
    for kind in KINDS:
        weights = [weight_of(kind, out, 192, torch.bfloat16, seed=out) for out in (40, 8, 33)]
        with library.using(isa):
            got = products(x, weights, [None] * 3)
            assert all(torch.equal(a, products(x, [w], [None])[0]) for a, w in zip(got, weights, strict=True))
    mixed = [weight_of("nf4", 7, 192, dtype) for dtype in DTYPES]
    packed = [weight for weight in mixed if isinstance(weight, PackedWeight)]
    with library.using(isa):
        assert [y.shape for y in linear_group(x, packed)] == [(5, 7)] * 3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(isa: str, kind: str) -> None:
    weight = weight_of(kind, 6, 64, torch.float32)
    with library.using(isa):
        assert products(torch.empty(0, 64), [weight], [None])[0].shape == (0, 6)
        assert linear(torch.empty(2, 0, 64), weight).shape == (2, 0, 6)


@pytest.mark.parametrize("kind", ["nf4", "nested", "int8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_input(kind: str, dtype: torch.dtype) -> None:
    weight = weight_of(kind, 70, 96, dtype)
    dy = torch.randn(2, 3, 70).to(dtype)
    decoded = dequantize(weight, dtype).double()
    wanted, terms = dy.double() @ decoded, dy.double().abs() @ decoded.abs()
    got = linear_input_grad(dy, weight)
    assert got.dtype == dtype
    # 70 float32 additions of these terms, in any order, then one rounding to the type.
    assert bool(
        ((got.double() - wanted).abs() <= 70 * 2.0**-24 * terms + 2 * HALF[dtype] * wanted.abs()).all()
    )


def test_plain_weights_take_the_kernel_where_no_gradient_is_wanted() -> None:
    layer = nn.Linear(96, 40, dtype=torch.bfloat16)
    x = torch.randn(3, 96).bfloat16()
    with torch.no_grad():
        alone = torch.cat([linear(row[None], layer.weight, layer.bias) for row in x])
        assert torch.equal(linear(x, layer.weight, layer.bias), alone)
        assert torch.equal(linear_group(x, [layer.weight, layer.weight])[1], linear(x, layer.weight))
    linear(x, layer.weight, layer.bias).float().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    assert not cpu_dense.kernel_is_faster(x, [layer.weight])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not cpu_dense.kernel_is_faster(x, [layer.weight])


def test_operators_know_their_shapes() -> None:
    weight = weight_of("nested", 10, 64, torch.bfloat16)
    assert isinstance(weight, PackedWeight)

    def step(x: Tensor) -> Tensor:
        return (
            linear(x, weight)
            + cpu_dense.plain_products(
                x, [weight.tensors["codes"].view(10, 32)[:, :1].bfloat16().expand(10, 64)], [None]
            )[0]
        )

    x = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), step(x))
    meta = weight.with_tensors({k: t.to("meta") for k, t in weight.tensors.items()})
    assert linear(x.to("meta"), meta).shape == (3, 10)
    assert cpu_dense.decode(meta, torch.float16, slice(2, 5)).shape == (3, 64)
