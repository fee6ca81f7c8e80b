"""Folders that Vitrail writes and transformers 4.57 reads, and the other way round; bitsandbytes live.

bitsandbytes decodes wrongly on CPUs with AVX-512 where a row is no multiple of its groups: widths here are
multiples of 64, other shapes are in tests/golden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

import vitrail
from tests import quantised
from tests.parity.pairs import FAMILIES, TEXTS, VISION_LANGUAGE, Shape, build, close, inputs
from tests.tiny import DATA as GOLDEN
from vitrail.ops.weight import dequantize
from vitrail.quant.policy import nf4_config

SHAPES = [
    *((shape, "30KB") for shape in (*VISION_LANGUAGE, *TEXTS)),
    (VISION_LANGUAGE[0], "5GB"),
    (TEXTS[0], "5GB"),
]
NOTHING: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "num_attention_heads": 4}
SIXTY_FOURS = [
    Shape("wide-llava", "llava", WIDE, {"hidden_size": 64, "intermediate_size": 128}),
    Shape(
        "wide-mistral3",
        "mistral3",
        WIDE,
        {"hidden_size": 64, "intermediate_size": 128},
        {},
        ((4, 6), (2, 2), (8, 2)),
    ),
]


def _class(library: Any, shape: Shape) -> Any:
    return getattr(library, FAMILIES[shape.family][1])


def _single(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    given = {name: value for name, value in inputs(shape, None).items() if name != "position_ids"}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}


@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=str)
def test_transformers_loads_what_vitrail_saves(tmp_path: Path, shape: Shape, size: str) -> None:
    pair = build(shape)
    pair.ours.save_pretrained(tmp_path, max_shard_size=size)
    loaded, info = _class(transformers, shape).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert {name: list(value) for name, value in info.items()} == NOTHING
    theirs = pair.theirs.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**_single(shape)).logits, pair.theirs(**_single(shape)).logits)


@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=str)
def test_vitrail_loads_what_transformers_saves(tmp_path: Path, shape: Shape, size: str) -> None:
    pair = build(shape)
    pair.theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    loaded = _class(vitrail, shape).from_pretrained(tmp_path / "theirs")
    ours = pair.ours.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(**_single(shape)).logits, pair.ours(**_single(shape)).logits)
    pair.theirs.save_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.fixture
def recorded_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes nests scales by the map that it recorded: the one that it makes differs on processors without AVX2."""
    functional = pytest.importorskip("bitsandbytes").functional
    with safe_open(GOLDEN / "bitsandbytes" / "weights.safetensors", "pt") as file:
        key = next(key for key in file.keys() if key.endswith("weight.nested_quant_map"))  # noqa: SIM118
        monkeypatch.setitem(functional.name2qmap, "dynamic", file.get_tensor(key))


@pytest.mark.usefixtures("decoding_linear4bit", "recorded_map")
@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SIXTY_FOURS, ids=str)
def test_bitsandbytes_live(tmp_path: Path, shape: Shape, kind: str, nested: bool) -> None:
    """Quantised while loading, by both: the same logits, the same file, and each reads the other's."""
    build(shape).ours.save_pretrained(tmp_path / "plain")
    words: dict[str, Any] = {
        "load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested
    }  # fmt: skip
    loaded = {}
    for library in (vitrail, transformers):
        loaded[library] = _class(library, shape).from_pretrained(
            tmp_path / "plain", quantization_config=library.BitsAndBytesConfig(**words), dtype=torch.float32
        )
    loaded[vitrail].save_pretrained(tmp_path / "ours")
    loaded[transformers].save_pretrained(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    again = _class(vitrail, shape).from_pretrained(tmp_path / "theirs", dtype="auto")
    crossed = _class(transformers, shape).from_pretrained(tmp_path / "ours", dtype="auto")
    with torch.no_grad():
        logits = [model(**_single(shape)).logits for model in (*loaded.values(), again, crossed)]
    assert torch.equal(logits[0], logits[2])
    for other in logits[1:]:
        close(logits[0], other, f"{kind} logits")


@pytest.mark.slow
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("shape", SIXTY_FOURS, ids=str)
def test_transformers_loads_what_vitrail_quantize_writes(tmp_path: Path, shape: Shape, vision: bool) -> None:
    """In NF4, tensor by tensor: the same layers packed, the same values in all."""
    build(shape).ours.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    keep = [] if vision else ["*.layers.0.*down_proj"]
    network = quantised.network(tmp_path / "plain")
    config = nf4_config(network, vision=vision, keep=keep)
    quantised.written(tmp_path / "plain", tmp_path / "nf4", config)
    loaded, info = _class(transformers, shape).from_pretrained(
        tmp_path / "nf4", output_loading_info=True, dtype=torch.float32
    )
    assert {name: list(value) for name, value in info.items()} == NOTHING
    ours = _class(vitrail, shape).from_pretrained(tmp_path / "nf4", dtype=torch.float32)
    packed = {name for name, module in ours.named_modules() if type(module).__name__ == "QuantLinear"}
    assert packed == {
        name for name, module in loaded.named_modules() if type(module).__name__ == "Linear4bit"
    }
    assert any("vision_tower" in name for name in packed) == vision
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for name in packed:
        weight = loaded.get_submodule(name).weight
        decoded = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(decoded, dequantize(ours.get_submodule(name).packed, decoded.dtype))
    plain = {
        name: tensor for name, tensor in ours.state_dict().items() if name in dict(loaded.named_parameters())
    }
    assert all(
        torch.equal(tensor, loaded.get_parameter(name))
        for name, tensor in plain.items()
        if tensor.is_floating_point()
    )


@pytest.mark.parametrize("skip", [None, ["vision_tower", "lm_head"], ["up_proj", "multi_modal_projector"]])
def test_the_same_layers_are_quantised(tmp_path: Path, skip: list[str] | None) -> None:
    shape = SIXTY_FOURS[0]
    build(shape).ours.save_pretrained(tmp_path)
    words: dict[str, Any] = {"load_in_4bit": True, "llm_int8_skip_modules": skip}
    ours = vitrail.LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=vitrail.BitsAndBytesConfig(**words)
    )
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(**words)
    )
    assert ours.dtype == theirs.dtype == torch.float16
    assert {name for name, module in ours.named_modules() if type(module).__name__ == "QuantLinear"} == {
        name for name, module in theirs.named_modules() if type(module).__name__ == "Linear4bit"
    }


@pytest.mark.usefixtures("decoding_linear4bit")
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_stay_as_near_as_the_reference(
    tmp_path: Path, dtype: torch.dtype, compute: torch.dtype
) -> None:
    """Within twice the reference's own distance from its float32 result over the same 4-bit weights."""
    shape = SIXTY_FOURS[0]
    build(shape).ours.to(dtype).save_pretrained(tmp_path)
    words: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

    def logits(library: Any, dtype: torch.dtype, compute: torch.dtype) -> torch.Tensor:
        config = library.BitsAndBytesConfig(**words, bnb_4bit_compute_dtype=compute)
        model = library.LlavaForConditionalGeneration.from_pretrained(
            tmp_path, quantization_config=config, dtype=dtype
        )
        with torch.no_grad():
            return torch.as_tensor(model(**_single(shape, dtype)).logits).float()

    exact = logits(transformers, torch.float32, torch.float32)
    allowed = 2 * (logits(transformers, dtype, compute) - exact).abs().max()
    assert (logits(vitrail, dtype, compute) - exact).abs().max() <= allowed


def test_8_bits_are_stored_alike(tmp_path: Path) -> None:
    """The reference rounds activations too, Vitrail does not: the files are equal, the logits only near."""
    shape = SIXTY_FOURS[0]
    build(shape).ours.save_pretrained(tmp_path / "plain")
    for library in (vitrail, transformers):
        model = library.LlavaForConditionalGeneration.from_pretrained(
            tmp_path / "plain", quantization_config=library.BitsAndBytesConfig(load_in_8bit=True)
        )
        model.save_pretrained(tmp_path / library.__name__)
    ours, theirs = (tmp_path / library.__name__ / "model.safetensors" for library in (vitrail, transformers))
    assert ours.read_bytes() == theirs.read_bytes()
