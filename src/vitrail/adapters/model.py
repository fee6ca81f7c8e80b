"""Adapters on a model: add, choose, switch off, remove, merge. Reads and writes no files."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.adapters.config import LoraConfig
from vitrail.adapters.layers import Adapted, Lora, LoraEmbedding, LoraLinear, LoraTable, Retrained
from vitrail.adapters.targets import find_saved, find_targets, is_linear
from vitrail.errors import InputError, UnsupportedError
from vitrail.ops.weight import dequantize
from vitrail.quant.replace import Quantized, QuantLinear, replace

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def add_adapter(model: nn.Module, config: LoraConfig, name: str = DEFAULT) -> list[str]:
    """Put a fresh adapter on the model, make it the active one, and return the names of its modules.

    Afterwards only the adapter's own tensors are trainable. After any error the model is unchanged.

    Raises:
        InputError: a name that is taken or invalid.
    """
    check_name(model, name)
    targets, saved = find_targets(model, config), find_saved(model, config)
    try:
        for path in targets:
            base = plain(model, path)
            rank = config.rank(path)
            attach(model, path, name, config, rank).draw(config.init_lora_weights)
            if config.use_dora:
                _lengths(adapter_at(model, path, name), base)
        for path in saved:
            retrain(model, path, name)
    except BaseException:  # on any error: no partial adapter stays
        remove(model, name)
        raise
    _register(model, name, config)
    return [*targets, *saved]


def check_name(model: nn.Module, name: str) -> None:
    """Raise InputError unless the model can take an adapter of this name."""
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise InputError(f"an adapter's name is made of letters, digits, '_' and '-', got {name!r:.120}.")
    if name in configs(model):
        raise InputError(
            f"there is an adapter {name!r} already; choose another adapter_name or delete it first."
        )


def attach(model: nn.Module, path: str, name: str, config: LoraConfig, rank: int) -> Any:
    """Attach empty matrices to the module at `path` and return them: a Lora or a LoraTable."""
    base = plain(model, path)
    where = _where(base)
    scaling = config.scaling(path, rank)
    part: nn.Module
    if isinstance(base, nn.Embedding):
        if config.use_dora:
            raise UnsupportedError(f"use_dora is not supported on embeddings, and {path} is one.")
        part = LoraTable(base.num_embeddings, base.embedding_dim, rank, scaling, **where)
    elif is_linear(base):
        width, height = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        part = Lora(width, height, rank, scaling, config.lora_dropout, **where)
    else:
        raise UnsupportedError(
            f"adapters go on linear layers and embeddings; {path} is a {type(base).__name__}."
        )
    _put(model, path, name, part)
    return part


def retrain(model: nn.Module, path: str, name: str, *, frozen: bool = False) -> nn.Module:
    """Attach a copy of the module at `path` to the adapter `name`, trained in float32 at least.

    Args:
        frozen: the copy is not trained and keeps its type.
    """
    base = plain(model, path)
    if isinstance(base, Quantized):
        raise UnsupportedError(
            f"a module of the adapter is whole, but {path} is quantised; leave it out when quantising."
        )
    part = copy.deepcopy(base)
    if not frozen and part.weight.is_floating_point():  # type: ignore[operator]
        part = part.to(torch.promote_types(part.weight.dtype, torch.float32))  # type: ignore[arg-type]
    part.requires_grad_(not frozen)
    holder = _put(model, path, name, part)
    if frozen:
        holder.frozen.add(name)
    return part


def remove(model: nn.Module, *names: str) -> None:
    """Remove all parts of the adapters `names`; restore modules without any."""
    for path, layer in list(adapted(model)):
        for name in names:
            if name in layer.adapters:
                del layer.adapters[name]
            layer.frozen.discard(name)
        layer.active = tuple(name for name in layer.active if name not in names)
        if not len(layer.adapters):
            replace(model, path, layer.base_layer)


def finish(model: nn.Module, name: str, config: LoraConfig) -> None:
    """Record an adapter with attached and filled matrices, and make it the active one."""
    for path, layer in adapted(model):
        if name in layer.adapters and config.use_dora and isinstance(layer, LoraLinear):
            lora: Any = layer.adapters[name]
            if lora.lora_magnitude_vector is None:
                _lengths(lora, plain(model, path))
    _register(model, name, config)


def adapted(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Yield every module with adapters and its name."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            yield name, module


def configs(model: nn.Module) -> dict[str, LoraConfig]:
    """Return the configurations of the model's adapters by name."""
    found: dict[str, LoraConfig] = getattr(model, "peft_config", {})
    return found


def active(model: nn.Module) -> list[str]:
    """Return the names of the chosen adapters, switched on or off."""
    return list(getattr(model, "_active_adapters", []))


def set_adapter(model: nn.Module, names: str | Sequence[str]) -> None:
    """Choose the adapters in use, whose products are summed. They are switched on, and only they are trainable."""
    chosen = [names] if isinstance(names, str) else list(names)
    _check_known(model, chosen)
    model._active_adapters = chosen  # type: ignore[assignment]
    _switch(model, chosen)
    for _, layer in adapted(model):
        layer.base_layer.requires_grad_(False)
        for name, part in layer.adapters.items():
            part.requires_grad_(name in chosen and name not in layer.frozen)


def switch(model: nn.Module, on: bool) -> None:
    """Switch the chosen adapters on, or off: the model then computes as without adapters."""
    if not configs(model):
        raise InputError(f"{type(model).__name__} has no adapter; load_adapter loads one.")
    _switch(model, active(model) if on else [])


def delete_adapter(model: nn.Module, names: str | Sequence[str]) -> None:
    """Remove adapters; restore modules without any.

    Without a remaining active one, the first left is chosen, as in PEFT, with a warning.
    """
    gone = [names] if isinstance(names, str) else list(names)
    _check_known(model, gone)
    on = any(layer.active for _, layer in adapted(model))
    remove(model, *gone)
    for name in set(gone):
        del configs(model)[name]
    before = active(model)
    left = [name for name in before if name not in gone]
    model._active_adapters = left  # type: ignore[assignment]
    remaining = next(iter(configs(model)), None)
    if before and not left and remaining is not None:
        set_adapter(model, remaining)
        switch(model, on)
        warnings.warn(
            f"the active adapter {', '.join(before)} was deleted; {remaining} is active now (set_adapter chooses)",
            stacklevel=3,
        )


@torch.no_grad()
def merge(model: nn.Module, names: Sequence[str] | None = None, linear: type[nn.Linear] = nn.Linear) -> None:
    """Merge the adapters `names` (default: the chosen ones) into the weights and remove all adapters.

    A packed layer becomes one of the kind `linear`, in its decoded type: packing it again would round the adapter away.
    """
    chosen = active(model) if names is None else list(names)
    _check_known(model, chosen)
    for path, layer in list(adapted(model)):
        layer.active = tuple(chosen)
        dtype = layer.base_layer.weight.dtype
        base: Any = layer.foundation
        if base is not layer.base_layer:
            base = base.to(dtype)
        if layer.current:
            base = _merged(base, layer.current, linear)
        replace(model, path, base)
    for name in list(configs(model)):
        del configs(model)[name]
    model._active_adapters = []  # type: ignore[assignment]
    _note_merge(model)


def _merged(base: Any, parts: Sequence[Any], linear: type[nn.Linear]) -> nn.Module:
    """Return `base` with a new weight; a table that shared the old one keeps it."""
    if isinstance(base, QuantLinear):
        packed = base.packed
        weight = dequantize(packed, packed.dtype)
        with torch.device("meta"):
            layer: Any = linear(base.in_features, base.out_features, bias=False)
        layer.bias = base.bias
        layer.train(base.training)
    else:
        layer, weight = base, base.weight
    dtype = weight.dtype
    for part in parts:
        weight = part.merged(weight)
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=True)
    return layer  # type: ignore[no-any-return]


def _note_merge(model: nn.Module) -> None:
    """Update the configuration: a head that differs from the embeddings, a model no longer packed."""
    config: Any = getattr(model, "config", None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if config is None or head is None:
        return
    tied = head.weight is model.get_input_embeddings().weight  # type: ignore[operator]
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = tied
    if not any(isinstance(module, Quantized) for module in model.modules()):
        config.__dict__.pop("quantization_config", None)


def plain(model: nn.Module, path: str) -> nn.Module:
    """Return the module at `path` without its adapters."""
    module = model.get_submodule(path)
    return module.base_layer if isinstance(module, Adapted) else module


def adapter_at(model: nn.Module, path: str, name: str) -> Any:
    """Return the part of the adapter `name` at `path`."""
    layer: Any = model.get_submodule(path)
    return layer.adapters[name]


def _put(model: nn.Module, path: str, name: str, part: nn.Module) -> Adapted:
    """Add a part of the adapter `name` to the module at `path`, made an Adapted one if needed."""
    holder = model.get_submodule(path)
    if not isinstance(holder, Adapted):
        embeds = isinstance(holder, nn.Embedding)
        kind = LoraEmbedding if embeds else LoraLinear if is_linear(holder) else Retrained
        holder = kind(holder)
        replace(model, path, holder)
    part.train(holder.training)
    holder.adapters[name] = part
    return holder


def _where(base: nn.Module) -> dict[str, Any]:
    """Return the device of a layer and its training type: its own, in float32 at least (as PEFT)."""
    weight: Any = base.weight
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
    return {"device": weight.device, "dtype": torch.promote_types(dtype, torch.float32)}


def _lengths(lora: Any, base: Any) -> None:
    if isinstance(lora, Lora):
        lora.learn_lengths(dequantize(base.weight, torch.float32))


def _register(model: nn.Module, name: str, config: LoraConfig) -> None:
    if not configs(model):
        model.peft_config = {}  # type: ignore[assignment]
    configs(model)[name] = config
    model.requires_grad_(False)
    set_adapter(model, name)


def _switch(model: nn.Module, names: Sequence[str]) -> None:
    for _, layer in adapted(model):
        layer.active = tuple(names)


def _check_known(model: nn.Module, names: Sequence[str]) -> None:
    known = configs(model)
    if not names or any(name not in known for name in names):
        there = ", ".join(known) or "none"
        raise InputError(f"adapters on this model: {there}; got {', '.join(map(str, names)) or 'no name'}.")
