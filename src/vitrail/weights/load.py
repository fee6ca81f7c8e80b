"""Load a checkpoint's tensors into a model built on the meta device: strict, one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.arguments import short
from vitrail.errors import InputError, UnsupportedError
from vitrail.ops import memory
from vitrail.quant.config import BitsAndBytesConfig, Quantization, read_quantization
from vitrail.quant.formats import StoredWeight, side_keys
from vitrail.quant.replace import QuantEmbedding, Quantized, QuantLinear, TiedHead, replace
from vitrail.weights.checkpoint import Checkpoint, open_checkpoint
from vitrail.weights.devices import DeviceMap, Placement, join, placement
from vitrail.weights.mapped import copied, keep_mapped, refuse_cut
from vitrail.weights.memory import Form, refuse_if_too_large
from vitrail.weights.names import PROJECTOR_BIASES, canonical
from vitrail.weights.plan import FLOATS, Plan, make_plan


def load_into(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    quantization: Quantization | Mapping[str, Any] | None = None,
    format: str | None = None,
) -> torch.dtype:
    """Fill `model`, built on the meta device, from the checkpoint in `folder`.

    On a CPU, weights in Vitrail's own formats are used in place in the mapped file: pages are read on first use and shared
    between processes. So are large plain tensors beside them that need no cast. All others are copied.

    Every parameter must be in the files with its shape, and nothing else may be. Three things follow from the files, not
    from the config, and are set in model.config: a missing lm_head is tied to the embeddings, whether the projector has
    biases, and which layers are quantised. If the folder's config.json is of another model_type (a vision-language
    model's, for its language model or tower alone), tensors of parts that `model` lacks are ignored.

    Args:
        model: on the meta device.
        folder: of the checkpoint.
        dtype: a torch.dtype or its name; "auto" is the config's, else the checkpoint's; None is float32 (float16 when
            quantising to bitsandbytes' formats, as in transformers).
        device_map: see `devices.placement`.
        quantization: how to quantise while loading; None: model.config.quantization_config. For a checkpoint already in
            bitsandbytes' formats only the compute dtype applies; one in Vitrail's own formats is loaded as it is.
        format: "hf" or "mistral" if the folder holds both; None: the one present, "hf" first.

    Returns:
        The dtype of the model's floats.

    Raises:
        CheckpointError: names everything that does not fit; the model is unchanged.
        OutOfMemory: a device has less free memory than the weights need (memory.py); the model is unchanged.
    """
    checkpoint = open_checkpoint(folder, format)
    config = getattr(model, "config", None)
    stored = read_quantization(getattr(config, "quantization_config", None))
    asked = read_quantization(quantization)
    plan = make_plan(model, checkpoint, asked if stored is None else None)
    plan.refuse_if_amiss(model, checkpoint)
    _refuse_another(stored or _implied(plan), asked)
    half = bool(plan.to_quantise) and isinstance(asked, BitsAndBytesConfig)
    target = resolve_dtype(dtype, config, checkpoint, quantised=half)
    where = placement(model, device_map)
    if device_map is not None:  # trainers use this name to see that modules must stay on their devices
        names = {
            path: device.type if device.index is None else device.index
            for path, device in where.devices.items()
        }
        model.hf_device_map = names  # type: ignore[assignment]
    form = Form(target, asked if stored is None else None)
    refuse_if_too_large(model, checkpoint, plan, form, where)
    fit_projector_bias(model, plan)
    _fill(model, checkpoint, plan, target, where, asked or stored)
    if plan.tied:
        _tie(model, *plan.tied)
    if config is not None:
        note(config, plan, stored or asked or _implied(plan))
    join(model, where)
    return target


def _refuse_another(stored: Quantization | None, asked: Quantization | None) -> None:
    """Raise UnsupportedError if the files are packed in one way and another is requested."""
    if stored is None or asked is None or stored == asked:
        return
    if not (isinstance(stored, BitsAndBytesConfig) and isinstance(asked, BitsAndBytesConfig)):
        raise UnsupportedError(
            f"the checkpoint is quantised already ({stored.quant_method}); leave quantization_config out, or load the "
            "model's unquantised checkpoint."
        )


def _tie(model: nn.Module, head: str, table: str) -> None:
    module = model.get_submodule(table)
    if isinstance(module, QuantEmbedding):
        replace(model, head, TiedHead(module))
    else:
        model.get_submodule(head).weight = module.weight


def fit_projector_bias(model: nn.Module, plan: Plan) -> None:
    """Add biases to the projector of a model on the meta device, or remove them, to match the files."""
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
    """Resolve `dtype`, see `load_into`. InputError if it is not a floating-point dtype."""
    if dtype is None:
        return torch.float16 if quantised else torch.float32
    if dtype == "auto":
        named = getattr(config, "dtype", None) or getattr(getattr(config, "text_config", None), "dtype", None)
        dtype = named or next(_plain_floats(checkpoint), torch.float32)
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        names = ", ".join(str(known).removeprefix("torch.") for known in FLOATS)
        raise InputError(f"dtype must be 'auto' or one of {names}, got {short(dtype)}.")
    return value


def _plain_floats(checkpoint: Checkpoint) -> Iterator[torch.dtype]:
    scales = tuple(f".{key}" for key in side_keys())
    for name in checkpoint.names():
        if checkpoint.spec(name).dtype in FLOATS and not name.endswith(scales):
            yield checkpoint.spec(name).dtype


def _fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    plan: Plan,
    dtype: torch.dtype,
    where: Placement,
    quantization: Quantization | None,
) -> None:
    """Read, convert and place every tensor, copied one at a time out of the mapped file or kept in place."""
    compute = None
    if isinstance(quantization, BitsAndBytesConfig) and not quantization.load_in_8bit:
        compute = quantization.bnb_4bit_compute_dtype
    refuse_cut(checkpoint)
    kept = False
    for path, stored in plan.packed.items():
        packed = stored.weight
        stays = path in plan.in_place and where.of(path).type == "cpu"
        tensors = {
            name: tensor if stays else memory.copied(tensor, where.of(path))
            for name, tensor in packed.tensors.items()
        }
        kept |= stays
        refuse_cut(checkpoint)
        placed = packed.with_tensors(tensors, packed.dtype if stored.format.stores_dtype else dtype)
        layer = _layer(model.get_submodule(path), StoredWeight(stored.format, placed), compute)
        replace(model, path, layer)
    for name, file_name in plan.plain.items():
        spec, path = checkpoint.spec(file_name), _path(name)
        target = dtype if spec.dtype.is_floating_point else spec.dtype
        choice = plan.to_quantise.get(path) if name.endswith(".weight") else None
        if choice is None or quantization is None:
            stays = plan.stays_mapped(spec, target, where.of(name))
            kept |= stays
            _put(
                model,
                name,
                checkpoint.tensor(file_name)
                if stays
                else copied(checkpoint, file_name, where.of(name), target),
            )
            continue
        tensor = checkpoint.tensor(file_name)
        packed = choice.format.quantize(tensor, choice.group, name=name, dtype=target, device=where.of(name))
        replace(model, path, _layer(model.get_submodule(path), StoredWeight(choice.format, packed), compute))
        memory.give_back()  # memory freed by quantising, so that loading stays within memory.py's estimate
    refuse_cut(checkpoint)
    if kept:
        keep_mapped(model, checkpoint)


def _layer(old: Any, stored: StoredWeight, compute: torch.dtype | None) -> Quantized:
    """Return the replacement of a plain layer or embedding whose weight is packed."""
    if isinstance(old, nn.Embedding):
        return QuantEmbedding(stored.weight, stored.format)
    return QuantLinear(stored.weight, stored.format, old.bias, compute_dtype=compute)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, leaf = model.get_submodule(_path(name)), name.rpartition(".")[2]
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    old = module._parameters[leaf]
    module._parameters[leaf] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _implied(plan: Plan) -> Quantization | None:
    """Return the configuration that a quantised checkpoint's config.json should have, by its first layer's format."""
    first = next(iter(plan.packed.values()), None)
    found: Quantization | None = None if first is None else first.format.implied_config(plan.packed)
    return found


def note(config: Any, plan: Plan, quantization: Quantization | None) -> None:
    """Set in the config what follows from the files, so that a saved copy has it."""
    for part_config in (config, getattr(config, "text_config", None)):
        if plan.has_head and hasattr(part_config, "tie_word_embeddings"):
            part_config.tie_word_embeddings = plan.tied is not None  # type: ignore[union-attr]
    if plan.projector_bias is not None:
        config.multimodal_projector_bias = plan.projector_bias
    if quantization is not None and (plan.packed or plan.to_quantise):
        config.quantization_config = quantization
