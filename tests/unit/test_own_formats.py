"""Our own formats in plain PyTorch: the layout, the quantiser, decoding, and the product that defines q4 and q8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError
from vitrail.ops.cpu import library
from vitrail.ops.linear import embedding, linear, linear_group, linear_input_grad
from vitrail.ops.reference.quant_matmul import round_rows, rounded_products
from vitrail.ops.weight import Layout, PackedWeight, dequantize
from vitrail.quant.formats.vitrail import quantize_own, relative_error

KINDS = ("q4", "q8", "bf16")
ROUNDED = ("q4", "q8")


def matrix(out: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def value(weight: PackedWeight, o: int, k: int) -> float:
    """One weight, from the bytes, by the words of ops/packing_layout.py."""
    codes, p, r = weight.tensors["codes"], o // 16, o % 16
    if weight.layout == Layout.PANELS16:
        return float(codes[p, k // 2, r, k % 2])
    scale = weight.tensors["scales"][p, k // weight.group, r].float()
    if weight.layout == Layout.PANELS8:
        return float(scale * (codes[p, k // 4, 4 * r + k % 4].float() / 128))
    byte = int(codes[p, k // 8, 4 * r + k % 4])
    code = byte >> 4 if k % 8 >= 4 else byte & 15
    return float(scale * (weight.tensors["levels"][code].float() / 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_layout(kind: str, group: int) -> None:
    """Every stored byte is where the layout says, and decodes to what it says."""
    weight = quantize_own(matrix(19, 128), kind, group)
    decoded = dequantize(weight, torch.float32)
    assert decoded.shape == (19, 128)
    for o, k in [(0, 0), (3, 5), (15, 127), (16, 64), (18, 31), (18, 127), (7, 12)]:
        assert decoded[o, k].item() == value(weight, o, k)


@pytest.mark.parametrize("kind", KINDS)
def test_some_rows_are_the_same_rows(kind: str) -> None:
    weight = quantize_own(matrix(53, 96), kind)
    whole = dequantize(weight, torch.float32)
    for first, last in [(0, 53), (0, 1), (16, 32), (5, 40), (52, 53), (30, 30)]:
        assert torch.equal(dequantize(weight, torch.float32, slice(first, last)), whole[first:last])


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_reads_single_rows(kind: str) -> None:
    weight = quantize_own(matrix(53, 96).bfloat16(), kind)
    ids = torch.tensor([[0, 52, 17], [17, 16, 15]])
    rows = embedding(ids, weight)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, dequantize(weight, torch.bfloat16)[ids])
    assert embedding(torch.empty(0, dtype=torch.long), weight).shape == (0, 96)


def test_an_odd_number_of_columns_is_padded_in_bf16() -> None:
    plain = matrix(17, 33).bfloat16()
    assert torch.equal(dequantize(quantize_own(plain, "bf16"), torch.bfloat16), plain)


@pytest.mark.parametrize("kind", ROUNDED)
def test_the_product_by_the_definition(kind: str) -> None:
    """Against the definition spelt out number by number, in float32."""
    weight, x = quantize_own(matrix(5, 64), kind), matrix(3, 64, 1)
    step = torch.tensor(2.0**-6 if kind == "q4" else 2.0**-7)
    got = rounded_products(x, [weight], [None])[0]
    for row in range(3):
        for o in range(5):
            total = torch.tensor(0.0)
            for g in range(2):
                part = x[row, 32 * g : 32 * g + 32]
                largest = part.abs().max()
                codes = torch.round(part * (torch.tensor(127.0) / largest)).int()
                scale = weight.tensors["scales"][0, g, o].float()
                whole = [value(weight, o, 32 * g + k) / scale / step for k in range(32)]
                dot = sum(int(c) * round(float(w)) for c, w in zip(codes, whole, strict=True))
                total = total + (torch.tensor(float(dot)) * scale) * ((largest / torch.tensor(127.0)) * step)
            assert got[row, o].item() == total.item()


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_near_that_of_the_decoded_weight(kind: str, dtype: torch.dtype) -> None:
    weight, bias = quantize_own(matrix(37, 256), kind), matrix(1, 37, 2)[0].to(dtype)
    x = matrix(4, 256, 1).to(dtype).view(2, 2, 256)
    y = linear(x, weight, bias)
    near = x.float() @ dequantize(weight, torch.float32).T + bias.float()
    assert y.dtype == dtype and y.shape == (2, 2, 37)
    assert (y.float() - near).norm() / near.norm() < 0.01
    together = linear_group(x, [weight, weight])
    assert all(torch.equal(part, linear(x, weight)) for part in together)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rows_of_the_definition_never_meet(kind: str) -> None:
    weight, x = quantize_own(matrix(40, 128), kind), matrix(1100, 128, 1)  # more rows than one block has
    whole = rounded_products(x, [weight], [None])[0]
    for part in (slice(0, 1), slice(5, 12), slice(1020, 1030)):
        assert torch.equal(whole[part], rounded_products(x[part], [weight], [None])[0])


def test_activations_that_are_not_numbers_or_nothing() -> None:
    x = torch.ones(4, 64)
    x[0, 3], x[1, 40], x[2] = torch.nan, -torch.inf, 1e-31
    codes, scale = round_rows(x, 32, Layout.PANELS4)
    assert scale[0].isnan().tolist() == [True, False] and scale[1].isnan().tolist() == [False, True]
    assert scale[2].eq(0).all() and codes[2].eq(0).all()
    with library.using("off"):
        y = linear(x, quantize_own(matrix(20, 64), "q4"))
    assert y[:2].isnan().all() and y[2].eq(0).all() and y[3].isfinite().all()


@pytest.mark.parametrize("kind", ROUNDED)
def test_gradients_pass_through_the_decoded_weight(kind: str) -> None:
    weight, plain = quantize_own(matrix(20, 64), kind), matrix(3, 64, 1)
    x, bias = plain.clone().requires_grad_(), torch.zeros(20, requires_grad=True)
    dy = matrix(3, 20, 2)
    linear(x, weight, bias).backward(dy)
    want = dy @ dequantize(weight, torch.float32)
    assert x.grad is not None and bias.grad is not None
    torch.testing.assert_close(x.grad, want)
    torch.testing.assert_close(bias.grad, dy.sum(0))
    torch.testing.assert_close(linear_input_grad(dy.bfloat16(), weight).float(), want, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("kind", ROUNDED)
def test_quantiser_of_hard_matrices(kind: str) -> None:
    """Groups of zeros stay zeros; tiny, huge and lone values are near what they were; the same bits each time."""
    plain = matrix(33, 128)
    plain[3], plain[4, :32] = 0.0, 0.0
    plain[5] *= 1e-36
    plain[6] *= 1e30
    plain[7] = 0.0
    plain[7, 9] = -2.5
    plain[8] = 3e38
    weight = quantize_own(plain, kind)
    decoded = dequantize(weight, torch.float32)
    assert decoded[3].eq(0).all() and decoded[4, :32].eq(0).all() and decoded.isfinite().all()
    for row in (0, 5, 6, 7, 8):
        error = (decoded[row].double() - plain[row].double()).norm() / plain[row].double().norm()
        lone = (
            0.2 if row == 7 else 0.12
        )  # no level of q4 is exactly 0: the zeros beside a lone value are near it
        assert error < (lone if kind == "q4" else 0.01), row
    again = quantize_own(plain.clone(), kind)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in weight.tensors.items())


def test_levels_are_fitted_to_the_matrix() -> None:
    """Values of two sizes alone: levels lie on them, and hardly anything is lost."""
    plain = torch.where(matrix(64, 128) > 0, 1.0, -0.25)
    weight = quantize_own(plain, "q4")
    levels = weight.tensors["levels"]
    assert levels.dtype == torch.int8 and levels.abs().max() == 63 and levels.diff().ge(0).all()
    assert relative_error(plain, weight) < 0.01


def test_a_matrix_of_zeros_and_a_strided_one() -> None:
    assert relative_error(torch.zeros(16, 32), quantize_own(torch.zeros(16, 32), "q4")) == 0.0
    wide = matrix(64, 48)
    for kind in KINDS:
        packed, same = quantize_own(wide.T, kind), quantize_own(wide.T.contiguous(), kind)
        assert torch.equal(dequantize(packed, torch.float32), dequantize(same, torch.float32))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers\.3 has 48 columns, which groups of 32 do not divide"):
        quantize_own(torch.zeros(16, 48), "q4", name="layers.3")
    with pytest.raises(ConfigError, match=r"groups of 48 columns are not supported, only 32, 64 and 128"):
        quantize_own(torch.zeros(16, 96), "q8", 48)
    with pytest.raises(ConfigError, match=r"'q5'; the formats are q4, q8, bf16"):
        quantize_own(torch.zeros(16, 32), "q5")
    with pytest.raises(ConfigError, match="must be a matrix of floats"):
        quantize_own(torch.zeros(16, dtype=torch.int8), "q8")
    for bad in (torch.nan, torch.inf):
        plain = matrix(20, 64)
        plain[17, 5] = bad
        with pytest.raises(CheckpointError, match=r"lm_head.*not finite"):
            quantize_own(plain, "q4", name="lm_head")


def test_size() -> None:
    """4.5 and 8.5 bits a weight, and sixteen levels."""
    sizes = {
        kind: sum(t.nbytes for t in quantize_own(matrix(32, 256), kind).tensors.values()) for kind in KINDS
    }
    assert sizes == {"q4": 32 * 256 * 9 // 16 + 16, "q8": 32 * 256 * 17 // 16, "bf16": 32 * 256 * 2}
