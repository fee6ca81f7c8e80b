"""A checkpoint's tensors into a model that was built on the meta device: strict, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.ops.weight import PackedWeight
from vitrail.quant.config import BitsAndBytesConfig, read_quantization
from vitrail.quant.replace import QuantLinear, quantize, replace
from vitrail.weights.checkpoint import Checkpoint
from vitrail.weights.devices import DeviceMap, Placement, join, placement
from vitrail.weights.memory import Form, refuse_if_too_large
from vitrail.weights.names import PROJECTOR_BIASES, canonical
from vitrail.weights.native import open_checkpoint
from vitrail.weights.plan import FLOATS, Plan, make_plan


def load_into(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    quantization: BitsAndBytesConfig | Mapping[str, Any] | None = None,
    format: str | None = None,
) -> torch.dtype:
    """Fill `model`, built on the meta device, from the safetensors in `folder`; return the dtype of its floats.

    dtype         a torch.dtype or its name; "auto" is the config's, else the checkpoint's; None is float32
                  (float16 when quantised while loading, as in transformers).
    device_map    see `devices.placement`.
    quantization  how to quantise Linear layers; for a checkpoint that is quantised already, only its
                  compute dtype counts. None: as model.config.quantization_config says.
    format        "hf" or "mistral" where the folder holds both (native.py); None: what is there, "hf" first.

    Every parameter must be in the files with its shape, and nothing else may be; CheckpointError tells of all
    that is amiss at once and leaves the model as it was; so does OutOfMemory, where a device has less memory free
    than the weights need (memory.py). Three things are read off the files, not the config,
    and noted in model.config: a missing lm_head is tied to the embeddings, the projector has biases or not, and
    which layers are quantised. When the folder's config.json is of another model_type (a vision-language
    model's, for its language model or tower alone), tensors of parts that `model` does not have are left out.
    """
    checkpoint = open_checkpoint(folder, format)
    config = getattr(model, "config", None)
    stored = read_quantization(getattr(config, "quantization_config", None))
    asked = read_quantization(quantization)
    plan = make_plan(model, checkpoint, asked if stored is None else None)
    plan.refuse_if_amiss(model, checkpoint)
    target = resolve_dtype(dtype, config, checkpoint, quantised=bool(plan.to_quantise))
    where = placement(model, device_map)
    form = Form(target, asked if stored is None else None)
    refuse_if_too_large(model, checkpoint, plan, form, where)
    _fit_projector_bias(model, plan)
    _fill(model, checkpoint, plan, target, where, asked or stored)
    if plan.tied:
        _submodule(model, plan.tied[0]).weight = _submodule(model, plan.tied[1]).weight
    if config is not None:
        _note(config, plan, stored or asked or _implied(plan))
    join(model, where)
    return target


def _fit_projector_bias(model: nn.Module, plan: Plan) -> None:
    if plan.projector_bias is None:
        return
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{canonical(path + '.')}bias" in PROJECTOR_BIASES:
            bias = (
                nn.Parameter(torch.empty(module.out_features, device="meta")) if plan.projector_bias else None
            )
            module.register_parameter("bias", bias)


def resolve_dtype(
    dtype: torch.dtype | str | None, config: Any, checkpoint: Checkpoint, *, quantised: bool = False
) -> torch.dtype:
    """The dtype that `dtype` means, see `load_into`. InputError for anything that is no float type."""
    if dtype is None:
        return torch.float16 if quantised else torch.float32
    if dtype == "auto":
        named = getattr(config, "dtype", None) or getattr(getattr(config, "text_config", None), "dtype", None)
        dtype = named or next(_plain_floats(checkpoint), torch.float32)
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        names = ", ".join(str(known).removeprefix("torch.") for known in FLOATS)
        raise InputError(f"dtype must be 'auto' or one of {names}, got {dtype!r}.")
    return value


def _plain_floats(checkpoint: Checkpoint) -> Iterator[torch.dtype]:
    scales = (".absmax", "_absmax", ".quant_map", ".nested_quant_map", ".SCB")
    for name in checkpoint.in_file_order():
        if checkpoint.entry(name).dtype in FLOATS and not name.endswith(scales):
            yield checkpoint.entry(name).dtype


def _fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    plan: Plan,
    dtype: torch.dtype,
    where: Placement,
    quantization: BitsAndBytesConfig | None,
) -> None:
    """Read, convert and place every tensor; each is copied out of the mapped file by itself."""
    compute = None
    if quantization is not None and not quantization.load_in_8bit:
        compute = quantization.bnb_4bit_compute_dtype
    for path, packed in plan.packed.items():
        tensors = {name: tensor.to(where.of(path), copy=True) for name, tensor in packed.tensors.items()}
        loaded_type = dtype if packed.kind == "int8" else packed.dtype
        copied = PackedWeight(packed.kind, packed.shape, packed.group, tensors, loaded_type)
        bias = _submodule(model, path).bias
        replace(model, path, QuantLinear(copied, bias, compute_dtype=compute, storage=plan.storage[path]))
    for name, file_name in plan.plain.items():
        tensor = checkpoint.tensor(file_name)
        target = dtype if tensor.is_floating_point() else tensor.dtype
        loaded = tensor.to(device=where.of(name), dtype=target, copy=True)
        path = _path(name)
        if path in plan.to_quantise and name.endswith(".weight") and quantization is not None:
            storage = torch.uint8 if quantization.load_in_8bit else quantization.bnb_4bit_quant_storage
            layer = QuantLinear(
                quantize(loaded, quantization),
                _submodule(model, path).bias,
                compute_dtype=compute,
                storage=storage,
            )
            replace(model, path, layer)
        else:
            _put(model, name, loaded)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, leaf = _submodule(model, _path(name)), name.rpartition(".")[2]
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    old = module._parameters[leaf]
    module._parameters[leaf] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _submodule(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def _implied(plan: Plan) -> BitsAndBytesConfig | None:
    """What a quantised checkpoint's config.json should have said of its first layer."""
    for path, packed in plan.packed.items():
        if packed.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=packed.kind,
            bnb_4bit_use_double_quant="nested_map" in packed.tensors,
            bnb_4bit_quant_storage=plan.storage[path],
        )
    return None


def _note(config: Any, plan: Plan, quantization: BitsAndBytesConfig | None) -> None:
    """Write into the config what was read off the files, so that a saved copy says it too."""
    for part_config in (config, getattr(config, "text_config", None)):
        if plan.has_head and hasattr(part_config, "tie_word_embeddings"):
            part_config.tie_word_embeddings = plan.tied is not None  # type: ignore[union-attr]
    if plan.projector_bias is not None:
        config.multimodal_projector_bias = plan.projector_bias
    if quantization is not None and (plan.packed or plan.to_quantise):
        config.quantization_config = quantization
