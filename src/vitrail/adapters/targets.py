"""Choice of the modules of a model for an adapter, by PEFT's rules. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from vitrail.adapters.config import ALL_LINEAR, LoraConfig
from vitrail.adapters.layers import Adapted
from vitrail.adapters.pattern import Budget, Pattern
from vitrail.errors import InputError, UnsupportedError
from vitrail.files.formatting import listed
from vitrail.quant.replace import Quantized, QuantLinear

PARTS = {
    "language_model": ("language_model", "model.layers", "lm_head", "model.embed_tokens"),
    "projector": ("multi_modal_projector",),
    "vision_tower": ("vision_tower",),
}
"""Parts of a model by the words of the command line → what is in the names of their modules."""


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of a model as without adapters."""
    hidden = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Adapted))
    for name, module in model.named_modules():
        if not name.startswith(hidden):
            yield name, module.base_layer if isinstance(module, Adapted) else module


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """Return the names of the linear layers and embeddings that `config` adapts, in the model's order.

    Raises:
        InputError: no module matches.
        UnsupportedError: a chosen module is of another kind.
    """
    if config.target_modules is None:
        raise InputError(
            "target_modules is missing; give endings of module names such as ['q_proj', 'v_proj'], or 'all-linear'."
        )
    found: list[tuple[str, nn.Module]] = []
    other: list[tuple[str, nn.Module]] = []
    for name, module in targeted(model, config):
        (found if takes_matrices(module) else other).append((name, module))
    if not found and not other:
        raise InputError(
            f"target_modules {config.target_modules!r:.200} fits no module of {type(model).__name__}."
        )
    if other:
        shown = listed([f"{name} ({type(module).__name__})" for name, module in other])
        raise UnsupportedError(
            f"adapters go on linear layers and embeddings; target_modules also names {shown}."
        )
    return [name for name, _ in found]


def targeted(
    model: nn.Module, config: LoraConfig, spelled: Callable[[str], str | None] = str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules, of any kind, that target_modules names.

    Args:
        spelled: maps a module's name to that in the adapter's own model; None for a missing one.
    """
    chosen = _chooser(config, model)
    excluded = _matcher(config.exclude_modules)
    for path, module in plain_modules(model):
        name = spelled(path)
        if name and not excluded(name) and not is_saved(name, config) and chosen(name, module):
            yield path, module


def saved(model: nn.Module, config: LoraConfig, spelled: Callable[[str], str | None] = str) -> Iterator[str]:
    """Yield the names of modules with weights of their own within those of modules_to_save; `spelled` as above."""
    for path, module in plain_modules(model):
        name = spelled(path)
        weights = isinstance(module, Quantized) or any(p is not None for p in module._parameters.values())
        if name and weights and is_saved(name, config):
            yield path


def find_saved(model: nn.Module, config: LoraConfig) -> list[str]:
    """Return the names of the modules to train whole. Raises InputError if modules_to_save matches none."""
    if not config.modules_to_save:
        return []
    found = list(saved(model, config))
    if not found:
        raise InputError(
            f"modules_to_save {config.modules_to_save!r:.200} fits no module of {type(model).__name__}."
        )
    return found


def in_parts(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return the module names within one of `parts` (keys of PARTS)."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"parts are {', '.join(PARTS)}; got {', '.join(unknown)}.")
    marks = tuple(f".{mark}." for part in parts for mark in PARTS[part])
    return [name for name in names if any(mark in f".{name}." for mark in marks)]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, plain or packed."""
    return isinstance(module, (nn.Linear, QuantLinear))


def takes_matrices(module: nn.Module) -> bool:
    """Return whether a module can have LoRA: a linear layer or a plain embedding."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def _chooser(config: LoraConfig, model: nn.Module) -> Callable[[str, nn.Module], bool]:
    target = config.target_modules
    if isinstance(target, str) and target.lower() == ALL_LINEAR:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        head = head.base_layer if isinstance(head, Adapted) else head
        return lambda name, module: is_linear(module) and module is not head
    fits = _matcher(target)
    if config.layers_to_transform is None:
        return lambda name, module: fits(name)
    numbered = config.layers_to_transform
    layers = [numbered] if isinstance(numbered, int) else numbered
    given = config.layers_pattern or r"[^.]*"
    holders = [given] if isinstance(given, str) else given
    budget = Budget()
    patterns = [Pattern.parse(rf"(?:.*\.)?(?:{holder})\.{n}\.", budget) for holder in holders for n in layers]
    named = set(target or ())
    return lambda name, module: (
        name in named or (fits(name) and any(pattern.match(name) for pattern in patterns))
    )


def _matcher(names: list[str] | str | None) -> Callable[[str], bool]:
    if not names:
        return lambda name: False
    if isinstance(names, str):
        return Pattern.parse(names).fullmatch
    endings = frozenset(names)

    def ends(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[n:]) in endings for n in range(len(parts)))

    return ends


def is_saved(name: str, config: LoraConfig) -> bool:
    """Return whether a module is, or lies in, one whose name ends with an entry of modules_to_save (as PEFT)."""
    endings, parts = tuple(config.modules_to_save or ()), name.split(".")
    return any(".".join(parts[: n + 1]).endswith(endings) for n in range(len(parts)))
