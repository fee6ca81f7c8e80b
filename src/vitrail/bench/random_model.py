"""Models of a real geometry with random weights, created directly in the packed format, without quantising or reading files.

Matrices are filled from one pool of random bytes: drawing billions of numbers would take longer than any measurement.
The scales keep activations in a normal range, so that no product sees infinities or denormal numbers.
"""

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.bench.geometries import config_of
from vitrail.errors import InputError
from vitrail.files.safetensors_writer import Spec
from vitrail.model.causal import CausalModel, MistralForCausalLM
from vitrail.model.vlm import LlavaForConditionalGeneration, Mistral3ForConditionalGeneration
from vitrail.ops import memory
from vitrail.ops.weight import Layout, PackedWeight
from vitrail.quant.bitsandbytes_codes import quant_map
from vitrail.quant.bitsandbytes_config import BitsAndBytesConfig
from vitrail.quant.config import Quantization
from vitrail.quant.formats import WeightFormat
from vitrail.quant.formats.bitsandbytes import NF4
from vitrail.quant.formats.vitrail import Q4, Q8
from vitrail.quant.policy import to_pack
from vitrail.quant.quantize_config import QuantizeConfig
from vitrail.quant.replace import QuantEmbedding, QuantLinear, TiedHead, replace

_QUANTIZATIONS: dict[str, Quantization] = {
    Q4.name: QuantizeConfig(Q4.name),
    Q8.name: QuantizeConfig(Q8.name),
    NF4.name: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=NF4.name, bnb_4bit_compute_dtype="bfloat16"
    ),
}
FORMATS = (*_QUANTIZATIONS, "bf16", "f32")
_POOL = 1 << 24  # size of the pool, in bytes or numbers
_LEVELS = (-63, -48, -38, -30, -23, -16, -10, -3, 3, 10, 16, 23, 30, 38, 48, 63)
_SPREAD = 0.55  # standard deviation of random codes, relative to the scale
_KINDS: dict[str, type[CausalModel]] = {
    "llava": LlavaForConditionalGeneration,
    "mistral3": Mistral3ForConditionalGeneration,
}


def random_model(params: Mapping[str, Any], format: str) -> Any:
    """Build a model of a params.json's geometry on the CPU, with the same weights on every call.

    Args:
        params: Mistral's params.json.
        format: one of FORMATS. Quantised formats pack the same layers as loading with that format does; "f32" computes in
            float32, all others in bfloat16.

    Raises:
        InputError: unknown format.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not known; one of {', '.join(FORMATS)} was expected.")
    config = config_of(dict(params))
    with torch.device("meta"):
        model = _KINDS.get(config.model_type, MistralForCausalLM)(config)
    dtype = torch.float32 if format == "f32" else torch.bfloat16
    config.dtype = dtype
    tied = config.get_text_config().tie_word_embeddings
    if format in _QUANTIZATIONS:
        config.quantization_config = _QUANTIZATIONS[format]
        _pack(model, config.quantization_config, tied, dtype)
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        made = nn.Parameter(_plain(name, parameter.shape, dtype), False)
        setattr(model.get_submodule(owner), last, made)
    if tied and not isinstance(model.lm_head, TiedHead):
        model.lm_head.weight = model.get_input_embeddings().weight
    return model.eval()


def _pack(model: CausalModel, quantization: Quantization, tied: bool, dtype: torch.dtype) -> None:
    """Replace layers by random packed ones, as loading would by packed ones."""
    table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    for path, choice in to_pack(model, quantization, ("lm_head", table) if tied else ()).items():
        old: Any = model.get_submodule(path)
        rows, columns = old.weight.shape
        packed = _packed(path, choice.format, (rows, columns), choice.group, dtype)
        is_table = isinstance(old, nn.Embedding)
        made = (
            QuantEmbedding(packed, choice.format)
            if is_table
            else QuantLinear(packed, choice.format, old.bias)
        )
        replace(model, path, made)
    embeddings = model.get_input_embeddings()
    if tied and isinstance(embeddings, QuantEmbedding):
        replace(model, "lm_head", TiedHead(embeddings))


def _packed(
    name: str, format: WeightFormat, shape: tuple[int, int], group: int, dtype: torch.dtype
) -> PackedWeight:
    scale = (1.0 if "embed_tokens" in name else shape[1] ** -0.5) / _SPREAD
    wanted = format.specs(shape, group, dtype)
    if format == NF4:
        tensors = {
            "codes": _codes(name, torch.uint8, (-(-math.prod(shape) // 2),)),
            "quant_map": quant_map(format.name),
            "absmax": _filled(wanted["weight.absmax"], scale),
        }
        return PackedWeight(Layout.MAP4, shape, group, tensors, dtype)
    parts = {
        "weight.codes": _codes(name, *wanted["weight.codes"]),
        "weight.scales": _filled(wanted["weight.scales"], scale),
    }
    if "weight.levels" in wanted:
        parts["weight.levels"] = torch.tensor(_LEVELS, dtype=torch.int8)
    return format.from_state(name, parts, shape, dtype)


def _filled(spec: Spec, value: float) -> Tensor:
    dtype, shape = spec
    return memory.empty(shape, dtype).fill_(value)


def _codes(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return 8-bit codes, or pairs of 4-bit codes, from the pool at an offset that depends on the name."""
    return _repeated(_code_pool(dtype), name, shape)


def _plain(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return ones for norms, else random values."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    deviation = 1.0 if "embed_tokens" in name else shape[1:].numel() ** -0.5
    return _repeated(_number_pool(deviation, dtype), name, tuple(shape))


def _repeated(pool: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    made = memory.empty(shape, pool.dtype)
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
