"""Adapters on disk, under PEFT's file and key names: adapter_config.json, adapter_model.safetensors. No training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.adapters.config import LoraConfig, saved_values
from vitrail.adapters.layers import Lora, LoraTable
from vitrail.adapters.model import (
    DEFAULT,
    adapted,
    attach,
    check_name,
    configs,
    finish,
    plain,
    remove,
    retrain,
)
from vitrail.adapters.targets import is_saved, plain_modules, saved, takes_matrices, targeted
from vitrail.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.formatting import listed
from vitrail.files.json import read_json
from vitrail.files.opening import home_path
from vitrail.files.replacing import replacing
from vitrail.files.safetensors import SafetensorsFile, write_safetensors
from vitrail.files.training_run import refuse_unfinished
from vitrail.files.writing import write_text
from vitrail.weights.names import canonical, part as part_of, published

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
}
_VISION = ("model.vision_tower.", "model.multi_modal_projector.")
_MODEL_FILES = ("config.json", "params.json")
_LIMIT = 1 << 22  # bytes of an adapter_config.json


@dataclass
class _Contents:
    """A file's contents: matrices by module and part, whole tensors of retrained modules, copies of base weights.

    Modules are named as in the model; `spelled` has the file's names.
    """

    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)


def read_config(folder: Path, keys: Iterable[str] = ()) -> LoraConfig:
    """Read the adapter_config.json of a folder. CheckpointError, ConfigError or UnsupportedError, naming the file.

    Args:
        keys: the names of the tensors that it describes.
    """
    if folder.is_dir():
        CheckpointFolder(folder).files  # noqa: B018 - raises for an incomplete folder and links out of it
    _refuse_other(folder)
    values = read_json(folder / CONFIG, limit=_LIMIT)
    try:
        return LoraConfig.from_dict(saved_values(values, keys))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error


def _refuse_other(folder: Path) -> None:
    """Raise CheckpointError, with the actual contents, for a folder without an adapter."""
    if os.path.lexists(folder / CONFIG):
        return
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; an adapter's folder was expected.")
    if any((folder / file).is_file() for file in _MODEL_FILES):
        raise CheckpointError(
            f"{folder} holds a model, not an adapter; give it as the model, or a folder with an {CONFIG}."
        )
    refuse_unfinished(folder)
    raise CheckpointError(f"{folder} has no {CONFIG}; an adapter's folder was expected.")


def base_of(name: str | os.PathLike[str]) -> str | None:
    """Return the base model of the adapter in a folder; None where the folder holds a model, or does not exist.

    A relative path counts from the adapter's folder if it exists there, else from the working directory.

    Raises:
        CheckpointError: the adapter has no base model, or another adapter as its base.
    """
    folder = home_path(name)
    if not _holds_adapter(folder):
        return None
    base = read_config(folder).base_model_name_or_path
    if not base:
        raise CheckpointError(
            f"{folder} holds an adapter that does not name its base model; load that model, and then this with "
            "load_adapter."
        )
    found = folder / base
    place = found if os.path.isdir(found) else home_path(base)
    if _holds_adapter(place):
        same = " (itself)" if place.samefile(folder) else ""
        raise CheckpointError(
            f"{folder} names {base}{same} as its base model, and that is an adapter too; correct base_model_name_or_path in "
            f"its {CONFIG}, or load the model, and then this with load_adapter."
        )
    return str(found) if os.path.isdir(found) else base


def _holds_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no model."""
    isfile = os.path.isfile  # false for too long a name, where Path's raises
    return isfile(folder / CONFIG) and not any(isfile(folder / file) for file in _MODEL_FILES)


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], name: str = DEFAULT) -> LoraConfig:
    """Put the adapter of a folder on the model under `name` and make it the active one.

    Embeddings and head that PEFT saved with the adapter (save_embedding_layers, a new vocabulary) are in use while it
    is active.

    Raises:
        CheckpointError: a tensor that fits no module, a matrix without its partner, or a module of the configuration
            without tensors; the model is unchanged.
        UnsupportedError: a pickle.
    """
    place = Path(folder)
    check_name(model, name)
    if (place / CONFIG).is_file() and not (place / WEIGHTS).exists() and (place / PICKLED).exists():
        raise UnsupportedError(
            f"{place} holds {PICKLED}, a pickle, and loading one can run anything; load it with PEFT and save it as "
            "safetensors."
        )
    read_config(place)  # errors of the configuration come before missing tensors
    source = SafetensorsFile(place / WEIGHTS)
    config = read_config(place, source)
    contents = _sort(model, source)
    _check_pairs(model, contents, config, source.path)
    try:
        _fill(model, contents, config, name, source.path)
    except BaseException:  # on any error: no partial adapter stays
        remove(model, name)
        raise
    finish(model, name, config)
    return config


def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter (default: the only one, or the active one) in the form that PEFT and Vitrail load.

    A half-written folder does not load.

    Args:
        state: tensors by the model's own names to write in place of the adapter's, as gathered by accelerate.

    Raises:
        CheckpointError: an error of the disk.
    """
    chosen = which(model, name)
    tensors = adapter_state(model, chosen, state)
    target = Path(folder)
    with replacing(target, last=CONFIG) as new:
        write_safetensors(new / WEIGHTS, tensors)
        write_text(new / CONFIG, configs(model)[chosen].to_json())


def adapter_state(
    model: nn.Module, name: str, given: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return PEFT's key → tensor, for one adapter; from `given`, by the model's own names, where set.

    Raises:
        InputError: `given` lacks a tensor of the adapter.
    """
    state: dict[str, Tensor] = {}
    for path, layer in adapted(model):
        if name not in layer.adapters:
            continue
        part = layer.adapters[name]
        matrices = isinstance(part, (Lora, LoraTable))
        for key, tensor in part.state_dict().items():
            suffix = f"{key}.weight" if matrices and key in ("lora_A", "lora_B") else key
            own = f"{path}.adapters.{name}.{key}"
            if given is not None and own not in given:
                raise InputError(f"state_dict lacks {own}, a tensor of the adapter {name!r}.")
            state[f"{_PREFIX}{path}.{suffix}"] = tensor if given is None else given[own]
    return state


def which(model: nn.Module, name: str | None) -> str:
    """Return the adapter's name; for None that of the only or the active one. InputError if ambiguous or unknown."""
    known = list(configs(model))
    active = getattr(model, "_active_adapters", [])
    if name is None and len(known) == 1:
        return known[0]
    if name is None and len(active) == 1:
        return str(active[0])
    if name is not None and name in known:
        return name
    raise InputError(f"say which adapter to save; there are {', '.join(known) or 'none'}, got {name!r}.")


def _sort(model: nn.Module, source: SafetensorsFile) -> _Contents:
    """Sort the tensors of a file by their modules."""
    modules = {canonical(f"{path}."): path for path, _ in plain_modules(model) if path}
    contents = _Contents()
    strange = []
    for key in source:
        bare = key.removeprefix(_PREFIX)
        module, part = _split(bare)
        path = modules.get(canonical(f"{module}."))
        if path is None:
            strange.append(key)
            continue
        contents.spelled[path] = module
        if part in _PARTS:
            contents.matrices.setdefault(path, {})[_PARTS[part]] = source.tensor(key)
        elif part == "base_layer.weight":
            contents.base[path] = source.tensor(key)
        else:
            contents.whole.setdefault(path, {})[part] = source.tensor(key)
    if strange:
        raise CheckpointError(
            f"{source.path} belongs to another model: {type(model).__name__} has no module for {listed(strange, most=20)}."
        )
    if not contents.matrices and not contents.whole:
        raise CheckpointError(f"{source.path} holds no adapter.")
    return contents


def _split(key: str) -> tuple[str, str]:
    """Split a key without its prefix into module and part."""
    for part in (*_PARTS, "base_layer.weight"):
        if key.endswith(f".{part}"):
            return key[: -len(part) - 1], part
    module, _, part = key.rpartition(".")
    return module, part


def _check_pairs(model: nn.Module, contents: _Contents, config: LoraConfig, path: Path) -> None:
    """Check that each configured module has both matrices, of its rank, and DoRA's lengths if configured."""
    wrong = []
    for module, parts in contents.matrices.items():
        given = set(parts) - {"lora_magnitude_vector"}
        if given not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            wrong.append(f"{module} has {', '.join(sorted(parts))}")
            continue
        if "lora_A" in given and config.use_dora != ("lora_magnitude_vector" in parts):
            wrong.append(f"{module} has {'no ' if config.use_dora else ''}lora_magnitude_vector")
        first, rank = parts[min(given)], config.rank(contents.spelled[module])
        if first.dim() != 2 or first.shape[0] != rank:
            wrong.append(f"{module} has {min(given)} of shape {tuple(first.shape)} where r is {rank}")
    for module in contents.whole:
        if not _named(contents, config, module) and module not in _embeddings(model, contents):
            wrong.append(f"{module} is saved whole, but modules_to_save does not name it")
    spelled = _spelling(contents)
    if config.target_modules is not None:
        targets = [name for name, module in targeted(model, config, spelled) if takes_matrices(module)]
        if missing := [name for name in targets if name not in contents.matrices]:
            wrong.append(f"target_modules also names {listed(missing)}, with no matrices in the file")
    if missing := [name for name in saved(model, config, spelled) if name not in contents.whole]:
        wrong.append(f"modules_to_save also names {listed(missing)}, with no weights in the file")
    if wrong:
        raise CheckpointError(f"{path} does not fit its {CONFIG}: {'; '.join(wrong[:20])}.")


def _named(contents: _Contents, config: LoraConfig, module: str) -> bool:
    """Return whether modules_to_save names a module, by the model's name or the file's."""
    return is_saved(module, config) or is_saved(contents.spelled[module], config)


def _embeddings(model: nn.Module, contents: _Contents) -> tuple[str, ...]:
    """Return the names of embeddings and head if the file has the embeddings' own weight: PEFT saves both, unnamed."""
    pair = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    names = {module: name for name, module in model.named_modules()}
    first, *rest = [names.get(module, "") if module is not None else "" for module in pair]
    return (first, *rest) if first in contents.whole or first in contents.base else ()


def _spelling(contents: _Contents) -> Callable[[str], str | None]:
    """Return the map from module names of this model to those of the file's model; None for a missing module."""
    ways: list[Callable[[str], str]] = [
        str,
        canonical,
        lambda name: published(canonical(name), vision=True),
        lambda name: published(canonical(name), vision=False),
    ]
    pairs = contents.spelled.items()
    way = max(ways, key=lambda one: sum(one(f"{name}.") == f"{spelled}." for name, spelled in pairs))

    def spelled(name: str) -> str | None:
        if way is ways[-1] and part_of(canonical(f"{name}.")) in _VISION:
            return None  # a text model's adapter
        return contents.spelled.get(name) or way(f"{name}.")[:-1]

    return spelled


def _fill(model: nn.Module, contents: _Contents, config: LoraConfig, name: str, path: Path) -> None:
    for module, given in contents.base.items():
        _check_base(plain(model, module), given, module, path)
    for module, parts in contents.matrices.items():
        part: Any = attach(model, module, name, config, config.rank(contents.spelled[module]))
        if "lora_magnitude_vector" in parts:
            part.lora_magnitude_vector = nn.Parameter(torch.zeros_like(part.lora_B[:, 0]))
        _copy(dict(part.named_parameters()), parts, module, path)
    for module, tensors in contents.whole.items():
        part = retrain(model, module, name, frozen=not _named(contents, config, module))
        _copy(dict(part.named_parameters()), tensors, module, path)


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor], module: str, path: Path) -> None:
    if own.keys() != given.keys():
        raise CheckpointError(f"{path}: {module} has {', '.join(given)}; expected {', '.join(own)}.")
    for key, tensor in given.items():
        if own[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {module} {key} has the shape {tuple(tensor.shape)}, this model needs {tuple(own[key].shape)}; "
                "the adapter belongs to another model, or to one whose vocabulary was resized (resize_token_embeddings)."
            )
        own[key].copy_(tensor)


def _check_base(base: Any, given: Tensor, module: str, path: Path) -> None:
    """Check that the base weight that PEFT stores with an adapted embedding or head is this model's."""
    weight = base.weight
    if not isinstance(weight, Tensor):
        return
    same = weight.shape == given.shape and torch.equal(weight.cpu(), given.to(weight.dtype))
    if not same:
        raise CheckpointError(
            f"{path} brings a weight for {module} that is not this model's; the adapter was trained on another "
            "checkpoint, or on one with more tokens."
        )
