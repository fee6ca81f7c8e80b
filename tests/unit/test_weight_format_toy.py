"""A file format that this test adds, in this file and one line of the table: everything else of the package takes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitrail
from tests import quantised, tiny
from tests.invariants.test_fused_blocks import Decoding, assert_same
from vitrail.describe import describe
from vitrail.errors import CheckpointError, UnsupportedError
from vitrail.files.safetensors import write_safetensors
from vitrail.files.safetensors_writer import Spec
from vitrail.model.fused import FusedBlocks
from vitrail.ops.cpu import library
from vitrail.ops.linear import linear, linear_group
from vitrail.ops.weight import INT8_STEP, Layout, PackedWeight
from vitrail.quant.formats import FORMATS, WeightFormat
from vitrail.quant.formats.bitsandbytes import NF4
from vitrail.quant.formats.vitrail import Q4
from vitrail.quant.replace import QuantLinear
from vitrail.weights.checkpoint import open_checkpoint
from vitrail.weights.devices import placement
from vitrail.weights.memory import Form, kept_bytes, peak_bytes
from vitrail.weights.plan import make_plan


@dataclass(frozen=True)
class ToyFormat(WeightFormat):
    """Steps of one size for a whole matrix, columns first. In memory they are rows of int8, each with the same scale."""

    name: str = "toy"

    method = "toy"
    keys = ("weight.steps", "weight.size")

    def specs(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> dict[str, Spec]:
        return {"weight.steps": (torch.int8, (shape[1], shape[0])), "weight.size": (torch.float32, (1,))}

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        for key, (type_, form) in self.specs(shape, 1, dtype).items():
            if key not in parts or (parts[key].dtype, tuple(parts[key].shape)) != (type_, form):
                raise CheckpointError(f"{name}.{key} must be {type_} {form}.")
        scale = parts["weight.size"].expand(shape[0]).contiguous()
        codes = parts["weight.steps"].t().contiguous()
        return PackedWeight(Layout.INT8_ROWS, shape, shape[1], {"codes": codes, "scale": scale}, dtype)

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        tensors = weight.tensors
        return {
            "weight.steps": tensors["codes"].t().contiguous(),
            "weight.size": tensors["scale"][:1].clone(),
        }


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", ToyFormat())


def toy_state(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    steps = torch.randint(-127, 128, (shape[1], shape[0]), generator=torch.Generator().manual_seed(seed))
    return {"weight.steps": steps.to(torch.int8), "weight.size": torch.tensor([1.0 / shape[1] ** 0.5])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of which q is toy, k q4, v and down NF4, gate plain, up toy; out is plain."""
    folder = tmp_path_factory.mktemp("toy")
    text = {**tiny.config_dict("llava")["text_config"], **quantised.WIDE["text_config"]}
    config = vitrail.MistralConfig.from_dict(text)
    model = tiny.randomize(vitrail.MistralForCausalLM(config)).bfloat16()
    state: dict[str, Tensor] = {}
    for seed, (name, tensor) in enumerate(model.state_dict().items()):
        path, last = name.removesuffix(".weight"), name.split(".")[-2]
        parts: dict[str, Tensor] = {"weight": tensor}
        if last in ("q_proj", "up_proj"):
            parts = toy_state(tuple(tensor.shape), seed)
        elif last in ("k_proj", "v_proj", "down_proj"):
            format: WeightFormat = Q4 if last == "k_proj" else NF4
            group = 32 if format == Q4 else 64
            packed = format.quantize(
                tensor, group, name=name, dtype=torch.bfloat16, device=torch.device("cpu")
            )
            parts = format.to_state(packed)
        state |= {f"{path}.{key}": part for key, part in parts.items()}
    write_safetensors(folder / "model.safetensors", state)
    values = {**config.to_dict(), "quantization_config": {"quant_method": "toy", "steps": "one size"}}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def load(folder: Path, **options: Any) -> Any:
    return vitrail.MistralForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def planned(folder: Path) -> tuple[Any, Any, Any]:
    with torch.device("meta"):
        model = vitrail.MistralForCausalLM(vitrail.AutoConfig.from_pretrained(folder))
    checkpoint = open_checkpoint(folder)
    return model, checkpoint, make_plan(model, checkpoint, None)


def formats_of(model: Any) -> dict[str, str]:
    return {n.split(".")[-1]: m.format.name for n, m in model.named_modules() if isinstance(m, QuantLinear)}


def test_a_checkpoint_is_loaded_and_decodes_to_what_the_file_says(folder: Path) -> None:
    model = load(folder)
    mixed = {"q_proj": "toy", "k_proj": "q4", "v_proj": "nf4", "up_proj": "toy", "down_proj": "nf4"}
    assert formats_of(model) == mixed
    layer = model.model.layers[1].self_attn.q_proj
    stored = open_checkpoint(folder)
    name = next(n for n in stored.names() if n.endswith("layers.1.self_attn.q_proj.weight.steps"))
    steps, size = stored.tensor(name), stored.tensor(name.replace("steps", "size"))
    wanted = (steps.t().float() * size * INT8_STEP).bfloat16()
    assert torch.equal(layer.format.dequantize(layer.packed), wanted)
    assert torch.equal(layer.format.dequantize(layer.packed, slice(3, 7)), wanted[3:7])


def test_projections_of_several_formats_are_multiplied_together(folder: Path) -> None:
    attention = load(folder).model.layers[0].self_attn
    weights = [getattr(attention, f"{letter}_proj").weight for letter in "qkv"]
    assert len({weight.layout for weight in weights}) == 3
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = linear_group(x, weights)
    assert all(torch.equal(y, linear(x, w)) for y, w in zip(together, weights, strict=True))


@pytest.mark.skipif(not library.available(), reason="no kernels were built")
@pytest.mark.parametrize("isa", library.available())
@pytest.mark.parametrize("cache", [torch.bfloat16, torch.int8])
@torch.no_grad()
def test_a_block_of_several_formats_is_one_call_with_the_bits_of_its_layers(
    folder: Path, isa: str, cache: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder)
    calls: list[bool] = []
    run = FusedBlocks.run

    def watched(self: FusedBlocks, *arguments: Any) -> Tensor | None:
        found = run(self, *arguments)
        calls.append(found is not None)
        return found

    with library.using(isa):
        for decoding in (Decoding(model, dtype=cache), Decoding(model, past=(0, 7), new=3, dtype=cache)):
            monkeypatch.setattr(FusedBlocks, "run", watched)
            fused = decoding()
            monkeypatch.setattr(FusedBlocks, "run", lambda *_: None)
            assert_same(fused, decoding())
    assert calls == [True, True]


def test_it_is_saved_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path)
    assert quantised.bytes_of(tmp_path).keys() >= {"config.json", "model.safetensors"}
    kept, again = open_checkpoint(folder), open_checkpoint(tmp_path)
    assert sorted(kept.names()) == sorted(again.names())
    assert all(torch.equal(kept.tensor(name), again.tensor(name)) for name in kept.names())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["quantization_config"] == {"quant_method": "toy", "steps": "one size"}
    ids = torch.arange(3, 12)[None]
    assert torch.equal(load(tmp_path)(ids).logits, load(folder)(ids).logits)


def test_a_config_without_a_word_of_it_gets_one(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "config.json").read_text("utf-8"))
    del values["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert load(tmp_path).config.quantization_config.quant_method in {"toy", "vitrail", "bitsandbytes"}


def test_its_memory_is_estimated(folder: Path) -> None:
    model, checkpoint, plan = planned(folder)
    form = Form(torch.bfloat16)
    kept = kept_bytes(model, checkpoint, plan, form)
    loaded = load(folder)
    held = {name: parameter.nbytes for name, parameter in loaded.named_parameters()}
    held |= {
        f"{name}.weight": module.packed.nbytes
        for name, module in loaded.named_modules()
        if isinstance(module, QuantLinear)
    }
    assert kept == held
    assert sum(peak_bytes(model, checkpoint, plan, form, placement(model, None)).values()) <= sum(
        held.values()
    )


def test_info_names_it_with_its_sizes(folder: Path) -> None:
    tiny.write_inputs(folder)
    info, text = describe(folder, "x"), vitrail.AutoConfig.from_pretrained(folder)
    steps = (text.num_attention_heads * text.head_dim + text.intermediate_size) * text.hidden_size
    assert info.weights["quantized"] == "nf4, q4, toy"
    assert info.weights["dtypes"]["int8"] == 2 * steps + 2 * 16  # levels of q4
    assert info.memory["bfloat16"]["weights"] == sum(
        kept_bytes(*planned(folder), Form(torch.bfloat16)).values()
    )


def test_info_estimates_it_by_the_configuration_before_the_weights_are_there(
    folder: Path, tmp_path: Path
) -> None:
    tiny.write_inputs(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    values = json.loads((folder / "config.json").read_text("utf-8"))
    away = describe(tmp_path, "x")
    assert away.weights["quantized"] == "toy"
    del values["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    plain = describe(tmp_path, "x")
    linear = plain.parameters["language_model"] - 5 * values["hidden_size"]  # two blocks' norms, and the last
    saved = plain.memory["bfloat16"]["weights"] - away.memory["bfloat16"]["weights"]
    assert saved == linear - 14 * 4  # a byte a weight, but for seven sizes a block


def test_a_damaged_matrix_is_named(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    state = {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}
    name = next(name for name in state if name.endswith("q_proj.weight.steps"))
    state[name] = state[name][:5].clone()
    write_safetensors(tmp_path / "model.safetensors", state)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"q_proj\.weight\.steps must be torch\.int8"):
        load(tmp_path)


def test_what_it_cannot_do_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantising, by loading or by writing, before any work; and saving, where a format does not write."""
    plain = quantised.source(tmp_path / "plain")
    asked = vitrail.AutoConfig.from_pretrained(folder).quantization_config
    with pytest.raises(UnsupportedError, match=r"weights in toy \(toy\) cannot be quantised to"):
        quantised.load(plain, quantization_config=asked)
    with pytest.raises(UnsupportedError, match="already"):
        load(folder, quantization_config=vitrail.BitsAndBytesConfig(load_in_8bit=True))
    monkeypatch.delattr(ToyFormat, "to_state")
    with pytest.raises(UnsupportedError, match=r"weights in toy \(toy\) cannot be saved"):
        load(folder).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_in_no_table_is_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FORMATS, "toy")
    with pytest.raises(UnsupportedError, match="'toy' is not supported"):
        load(folder)
