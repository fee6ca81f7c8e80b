"""quant/config.py and replace.py: the configuration's words, the layers they choose, and what such a layer does."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError, ConfigError, UnsupportedError
from vitrail.files.safetensors import write_safetensors
from vitrail.ops.linear import embedding, linear, linear_group, linear_input_grad
from vitrail.ops.weight import dequantize
from vitrail.quant.bitsandbytes_codes import quantize_4bit, quantize_int8
from vitrail.quant.config import BitsAndBytesConfig, read_quantization
from vitrail.quant.formats.bitsandbytes import FP4, INT8, BitsAndBytes4
from vitrail.quant.policy import quantized_names
from vitrail.quant.replace import QuantLinear

LLAVA = vitrail.LlavaForConditionalGeneration


def test_the_defaults_are_fp4_and_float32() -> None:
    config = BitsAndBytesConfig(load_in_4bit=True)
    assert config.quantization_method() == "fp4"
    assert config.bnb_4bit_compute_dtype == torch.float32
    assert config.bnb_4bit_quant_storage == torch.uint8
    assert BitsAndBytesConfig(load_in_8bit=True).quantization_method() == "llm_int8"
    assert BitsAndBytesConfig().quantization_method() is None


def test_dict_and_json_round_trips(tmp_path: Path) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="bfloat16",
        llm_int8_skip_modules=["a"],
    )
    assert BitsAndBytesConfig.from_dict(config.to_dict()) == config
    config.to_json_file(tmp_path / "q.json")
    assert BitsAndBytesConfig.from_dict(json.loads((tmp_path / "q.json").read_text("utf-8"))) == config
    assert json.loads(config.to_json_string()) == {
        "_load_in_4bit": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["a"],
        "load_in_4bit": True,
    }
    assert copy.deepcopy(config) == config != BitsAndBytesConfig()
    again, rest = BitsAndBytesConfig.from_dict({}, return_unused_kwargs=True, load_in_8bit=True, other=1)
    assert (again.load_in_8bit, rest) == (True, {"other": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"load_in_4bit": True, "load_in_8bit": True},
        {"load_in_4bit": "yes"},
        {"bnb_4bit_quant_type": "int4"},
        {"bnb_4bit_compute_dtype": "float7"},
        {"bnb_4bit_compute_dtype": 16},
        {"bnb_4bit_quant_storage": "complex64"},
        {"llm_int8_threshold": "6"},
        {"llm_int8_skip_modules": "lm_head"},
        {"llm_int8_skip_modules": [1]},
        {"load_in_3bit": True},
    ],
)
def test_wrong_words_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(wrong)):
        BitsAndBytesConfig(**wrong)


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "compressed-tensors", "exl2", None, 4])
def test_other_methods_are_unsupported_and_say_what_is_not(method: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"'bitsandbytes' \(nf4, fp4, int8\)"):
        read_quantization({"quant_method": method})


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedError, match="'fp8'"):
        LLAVA.from_pretrained(folder)


def test_which_layers(tmp_path: Path) -> None:
    model = tiny.model("llava")
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def chosen(skip: list[str] | None, **more: Any) -> set[str]:
        return quantized_names(
            model, BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip), **more
        )

    assert chosen(None) == every - {"lm_head"}
    assert chosen([]) == every
    assert chosen([], tied=("lm_head",)) == every - {"lm_head"}
    assert chosen(["vision_tower", "lm_head"]) == {n for n in every if "vision_tower" not in n} - {"lm_head"}
    assert chosen(["up_proj"]) == {name for name in every if not name.endswith("up_proj")}
    one = "model.language_model.layers.0.mlp"
    assert chosen([one]) == {name for name in every if not name.startswith(one)}
    assert quantized_names(model, BitsAndBytesConfig()) == set()


FORMATS = {"nf4": BitsAndBytes4("nf4", nested=True), "fp4": FP4, "int8": INT8}


def _layer(kind: str = "nf4", **options: Any) -> tuple[QuantLinear, torch.Tensor]:
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    packed = quantize_int8(weight) if kind == "int8" else quantize_4bit(weight, kind, nested=kind == "nf4")
    layer = QuantLinear(packed, FORMATS[kind], nn.Parameter(torch.arange(10.0)), **options)
    return layer, dequantize(packed, torch.float32)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_layer_computes_with_the_decoded_weight(kind: str) -> None:
    layer, weight = _layer(kind)
    x = torch.randn(2, 3, 24)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    torch.testing.assert_close(linear_group(x, [layer.packed, weight])[0], F.linear(x, weight))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_reach_input_and_bias_only(kind: str) -> None:
    layer, weight = _layer(kind)
    x = torch.randn(2, 3, 24, requires_grad=True)
    layer(x).square().sum().backward()
    got, got_bias = x.grad, layer.bias.grad if layer.bias is not None else None
    plain, bias = (
        x.detach().requires_grad_(),
        layer.bias.detach().requires_grad_() if layer.bias is not None else None,
    )
    F.linear(plain, weight, bias).square().sum().backward()
    assert got is not None
    assert got_bias is not None
    assert bias is not None
    torch.testing.assert_close(got, plain.grad)
    torch.testing.assert_close(got_bias, bias.grad)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    dy = torch.randn(4, 10)
    torch.testing.assert_close(linear_input_grad(dy, layer.packed), dy @ weight)


def test_the_compute_type_never_narrows_float32() -> None:
    layer, weight = _layer(compute_dtype=torch.bfloat16)
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    half = layer(x.half())
    assert half.dtype == torch.float16
    wide = F.linear(x.half().bfloat16(), weight.bfloat16(), torch.arange(10.0).bfloat16())
    torch.testing.assert_close(half, wide.half(), rtol=2**-7, atol=2**-7)  # one step of bfloat16


def test_casting_keeps_codes_and_scales() -> None:
    layer, _ = _layer()
    before = {name: tensor.clone() for name, tensor in layer.packed.tensors.items()}
    layer.to(torch.bfloat16).double().half()
    assert layer.bias is not None
    assert layer.bias.dtype == torch.float16
    assert all(torch.equal(layer.packed.tensors[name], tensor) for name, tensor in before.items())
    assert all(tensor.is_meta for tensor in layer.to("meta").packed.tensors.values())


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_state_dict_round_trip(kind: str) -> None:
    layer, weight = _layer(kind)
    other = QuantLinear(
        quantize_int8(torch.ones(10, 24))
        if kind == "int8"
        else quantize_4bit(torch.ones(10, 24), kind, nested=kind == "nf4"),
        FORMATS[kind],
        nn.Parameter(torch.zeros(10)),
    )
    holder, source = nn.Sequential(other), nn.Sequential(layer)
    holder.load_state_dict(source.state_dict())
    assert torch.equal(dequantize(other.packed, torch.float32), weight)
    state = source.state_dict()
    del state["0.bias"], state["0.weight"]
    with pytest.raises(RuntimeError, match=r'"0\.weight", "0\.bias"'):
        holder.load_state_dict(state)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_embedding_decodes_the_rows_it_needs(kind: str) -> None:
    layer, weight = _layer(kind)
    ids = torch.tensor([[3, 9, 3], [0, 0, 1]])
    assert torch.equal(embedding(ids, layer.packed), weight[ids])
    assert embedding(torch.empty(0, dtype=torch.int64), layer.packed).shape == (0, 24)
    assert torch.equal(linear(torch.eye(24), layer.packed), weight.T)


def test_quantised_while_loading(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = LLAVA.from_pretrained(folder, quantization_config=config)
    plain = LLAVA.from_pretrained(folder, dtype=torch.float16)
    assert model.dtype == torch.float16
    assert model.config.quantization_config is config
    assert type(model.lm_head) is type(plain.lm_head)
    path = "model.language_model.layers.0.mlp.up_proj"
    wanted = quantize_4bit(plain.get_submodule(path).weight, "nf4")
    got = model.get_submodule(path).packed
    assert all(torch.equal(got.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    assert model.num_parameters() == plain.num_parameters()


@pytest.fixture(scope="module")
def written(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in NF4; `folder` is a copy that a test may spoil."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    out = tmp_path_factory.mktemp("nf4")
    LLAVA.from_pretrained(tiny_llava, quantization_config=config).save_pretrained(out)
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "q"))


def test_a_config_without_a_word_of_it_gets_one(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = LLAVA.from_pretrained(folder, dtype="auto")
    assert model.config.quantization_config == BitsAndBytesConfig.from_dict(said)


KEY = "language_model.model.layers.0.mlp.up_proj.weight"
STATE = KEY + ".quant_state.bitsandbytes__nf4"


def _text(**change: Any) -> torch.Tensor:
    state = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float16",
        "shape": [112, 80],
        "nested_blocksize": 256,
    }
    state |= {"nested_dtype": "float32", "nested_offset": 0.1} | change
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (KEY + ".absmax", None, "absmax is missing"),
        (KEY + ".absmax", torch.zeros(7, dtype=torch.uint8), "absmax must be"),
        (KEY + ".absmax", torch.zeros(112, 2, dtype=torch.bfloat16), "absmax must be"),
        (KEY + ".quant_map", torch.zeros(15), "quant_map must be"),
        (KEY + ".nested_absmax", torch.zeros(9), "nested_absmax must be"),
        (KEY, torch.zeros(3, 1, dtype=torch.uint8), "bytes"),
        (STATE, None, "must have one quant_state"),
        (KEY + ".bogus", torch.zeros(1), "bogus beside the quantised weight is unexpected"),
        (STATE, torch.zeros(3), "short uint8 vector"),
        (STATE, torch.tensor([1, 2, 255], dtype=torch.uint8), "UTF-8"),
        (STATE, _text(shape=[80, 112]), r"is \(80, 112\) in the files, \(112, 80\) in the model"),
        (STATE, _text(shape=[2**40, 2**40]), "bytes"),
        (STATE, _text(shape=[-1, 4]), "shape"),
        (STATE, _text(blocksize=0), "blocksize"),
        (STATE, _text(blocksize=63), "blocksize"),
        (STATE, _text(dtype="int8"), "dtype"),
        (STATE, _text(quant_type="fp4"), "quant_type"),
        (STATE, _text(nested_blocksize=128), "nested_blocksize"),
        (STATE, _text(nested_offset="x"), "nested_offset"),
        (STATE, _text(nested_offset=10**400), "nested_offset"),
        (STATE, _text(nested_offset=float("nan")), "nested_offset"),
        (STATE, _text(dtype=["float16"]), "dtype"),
    ],
)
def test_a_damaged_layer_is_named(folder: Path, key: str, value: torch.Tensor | None, reason: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=reason) as caught:
        LLAVA.from_pretrained(folder)
    assert "layers.0.mlp.up_proj" in str(caught.value)


def test_storage_that_does_not_divide() -> None:
    packed = quantize_4bit(torch.randn(3, 3), "nf4")
    with pytest.raises(ConfigError, match="uint8"):
        BitsAndBytes4("nf4", storage=torch.float32).to_state(packed)


def test_8_bit_layouts_other_than_row_major() -> None:
    parts = INT8.to_state(quantize_int8(torch.randn(3, 5))) | {
        "weight_format": torch.tensor(2, dtype=torch.uint8)
    }
    with pytest.raises(CheckpointError, match="row-major"):
        INT8.from_state("x", parts, (3, 5), torch.float32)
