"""Which modules of a model an adapter goes on, chosen as PEFT chooses them. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from vitrail.adapters.config import ALL_LINEAR, LoraConfig
from vitrail.adapters.layers import Adapted
from vitrail.adapters.pattern import Pattern
from vitrail.errors import InputError, UnsupportedError
from vitrail.files.formatting import listed
from vitrail.quant.replace import QuantLinear

PARTS = {
    "language_model": ("language_model", "model.layers", "lm_head", "model.embed_tokens"),
    "projector": ("multi_modal_projector",),
    "vision_tower": ("vision_tower",),
}
"""Parts of a model by the words of the command line → what is in the names of their modules."""


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The names and modules of a model as if no adapter were on it."""
    hidden = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Adapted))
    for name, module in model.named_modules():
        if not name.startswith(hidden):
            yield name, module.base_layer if isinstance(module, Adapted) else module


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The names of the linear layers and embeddings that `config` adapts, in the model's order.

    Raises InputError when there are none, UnsupportedError when a chosen module is of another kind.
    """
    if config.target_modules is None:
        raise InputError(
            "target_modules is missing; give endings of module names such as ['q_proj', 'v_proj'], or 'all-linear'."
        )
    chosen = _chooser(config, model)
    excluded = _matcher(config.exclude_modules)
    found: list[tuple[str, nn.Module]] = []
    other: list[tuple[str, nn.Module]] = []
    for name, module in plain_modules(model):
        if not name or excluded(name) or _is_saved(name, config.modules_to_save) or not chosen(name, module):
            continue
        (found if is_linear(module) or isinstance(module, nn.Embedding) else other).append((name, module))
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


def find_saved(model: nn.Module, config: LoraConfig) -> list[str]:
    """The names of the modules of modules_to_save: those that are, or end with a dot and, one of its names."""
    if not config.modules_to_save:
        return []
    found = [name for name, _ in plain_modules(model) if _ends(name, config.modules_to_save)]
    if not found:
        raise InputError(
            f"modules_to_save {config.modules_to_save!r:.200} fits no module of {type(model).__name__}."
        )
    return found


def in_parts(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Those module names that lie in one of `parts` (keys of PARTS)."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"parts are {', '.join(PARTS)}; got {', '.join(unknown)}.")
    marks = tuple(f".{mark}." for part in parts for mark in PARTS[part])
    return [name for name in names if any(mark in f".{name}." for mark in marks)]


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, plain or packed."""
    return isinstance(module, (nn.Linear, QuantLinear))


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
    patterns = [Pattern.parse(rf"(?:.*\.)?(?:{holder})\.{n}\.") for holder in holders for n in layers]
    named = set(target or ())
    return lambda name, module: (
        name in named or (fits(name) and any(pattern.match(name) for pattern in patterns))
    )


def _matcher(names: list[str] | str | None) -> Callable[[str], bool]:
    if not names:
        return lambda name: False
    if isinstance(names, str):
        return Pattern.parse(names).fullmatch
    return lambda name: _ends(name, names)


def _ends(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_saved(name: str, saved: Sequence[str] | None) -> bool:
    """Whether it lies in one of modules_to_save."""
    return any(f".{one}." in f".{name}." for one in saved or ())
