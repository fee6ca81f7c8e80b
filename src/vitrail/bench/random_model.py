"""Models of a real geometry with random weights, made in the packed format itself. Nothing is quantised, no file is read.

A matrix is filled from one pool of random bytes: drawing billions of numbers would take longer than every measurement.
Values keep the size of what goes through them, so that no product meets infinities or denormal numbers.
"""

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.bench.geometries import config_of
from vitrail.errors import InputError
from vitrail.model.causal import CausalModel, MistralForCausalLM
from vitrail.model.vlm import LlavaForConditionalGeneration, Mistral3ForConditionalGeneration
from vitrail.ops.weight import PackedWeight
from vitrail.quant.bitsandbytes import GROUP as NF4_GROUP, quant_map
from vitrail.quant.own_layout import from_state, specs
from vitrail.quant.replace import QuantLinear, replace

FORMATS = ("q4", "q8", "nf4", "bf16", "f32")
OWN = ("q4", "q8")
OWN_GROUP = 32
_POOL = 1 << 24  # random bytes, or numbers, that are repeated
_LEVELS = (-63, -48, -38, -30, -23, -16, -10, -3, 3, 10, 16, 23, 30, 38, 48, 63)
_SPREAD = 0.55  # standard deviation of random codes of q4, q8 and NF4, as parts of the scale
_KINDS: dict[str, type[CausalModel]] = {
    "llava": LlavaForConditionalGeneration,
    "mistral3": Mistral3ForConditionalGeneration,
}


def random_model(params: Mapping[str, Any], format: str) -> Any:
    """A model of a params.json's geometry on the CPU; the same weights each time.

    format: of the decoder's matrices. With q4 and q8 everything else that is a matrix is q8, as `vitrail quantize` keeps
    it; with nf4 head and embeddings stay bfloat16, as bitsandbytes keeps them; "f32" computes in float32, all others in
    bfloat16. Raises InputError for an unknown format.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not known; one of {', '.join(FORMATS)} was expected.")
    config = config_of(dict(params))
    with torch.device("meta"):
        model = _KINDS.get(config.model_type, MistralForCausalLM)(config)
    dtype = torch.float32 if format == "f32" else torch.bfloat16
    tied = config.get_text_config().tie_word_embeddings
    for name, module in list(model.named_modules()):
        kind = _kind_of(name, module, format, tied)
        if kind is not None:
            shape = (module.out_features, module.in_features)
            bias = None if module.bias is None else nn.Parameter(torch.zeros(shape[0], dtype=dtype))
            replace(model, name, QuantLinear(_packed(name, kind, shape, dtype), bias))
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        if parameter.is_meta:
            setattr(
                model.get_submodule(owner), last, nn.Parameter(_plain(name, parameter.shape, dtype), False)
            )
    model.tie_weights()
    return model.eval()


def _kind_of(name: str, module: nn.Module, format: str, tied: bool) -> str | None:
    """The packed kind of a Linear layer; None for what stays plain."""
    if not isinstance(module, nn.Linear) or format in ("bf16", "f32"):
        return None
    in_decoder = "language_model." in name or name.startswith("model.layers.")
    if in_decoder:
        return format
    if format == "nf4":
        return None if name == "lm_head" else format
    return None if name == "lm_head" and tied else "q8"


def _packed(name: str, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> PackedWeight:
    scale = shape[1] ** -0.5 / _SPREAD
    if kind == "nf4":
        return PackedWeight(kind, shape, NF4_GROUP, _random_nf4(name, shape, scale), dtype)
    wanted = specs(kind, shape, OWN_GROUP)
    code_type, code_shape = wanted["weight.codes"]
    scale_type, scale_shape = wanted["weight.scales"]
    parts = {
        "weight.codes": _codes(name, code_type, code_shape),
        "weight.scales": torch.full(scale_shape, scale, dtype=scale_type),
    }
    if kind == "q4":
        parts["weight.levels"] = torch.tensor(_LEVELS, dtype=torch.int8)
    return from_state(name, parts, shape, dtype)


def _random_nf4(name: str, shape: tuple[int, int], scale: float) -> dict[str, Tensor]:
    count = shape[0] * shape[1]
    return {
        "codes": _codes(name, torch.uint8, (-(-count // 2),)),
        "quant_map": quant_map("nf4"),
        "absmax": torch.full((-(-count // NF4_GROUP),), scale),
    }


def _codes(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Codes of eight bits, or pairs of four: the pool's bytes from a place that depends on the name."""
    return _repeated(_code_pool(dtype), name, shape)


def _plain(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Ones for norms, else random values."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    deviation = 1.0 if "embed_tokens" in name else shape[1:].numel() ** -0.5
    return _repeated(_number_pool(deviation, dtype), name, tuple(shape))


def _repeated(pool: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    made = torch.empty(shape, dtype=pool.dtype)
    flat = made.view(-1)
    start = zlib.crc32(name.encode()) % pool.numel()
    done = 0
    while done < flat.numel():
        count = min(pool.numel() - start, flat.numel() - done)
        flat[done : done + count] = pool[start : start + count]
        done, start = done + count, 0
    return made


@lru_cache(maxsize=2)
def _code_pool(dtype: torch.dtype) -> Tensor:
    least, most = (-127, 128) if dtype == torch.int8 else (0, 256)
    return torch.randint(least, most, (_POOL,), dtype=dtype, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=4)
def _number_pool(deviation: float, dtype: torch.dtype) -> Tensor:
    numbers = torch.randn(_POOL >> 2, generator=torch.Generator().manual_seed(0))
    return (numbers * deviation).to(dtype)
