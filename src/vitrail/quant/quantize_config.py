"""QuantizeConfig: configuration of Vitrail's own formats q4 and q8, in Python and in a config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.arguments import checked_except
from vitrail.errors import CheckpointError, ConfigError

METHOD = "vitrail"
LAYOUT_VERSION = 1  # of the tensors in files; others are rejected
FORMATS = ("q4", "q8")
GROUPS = (32, 64, 128)
PARTS = ("q8", "q4", "bf16")  # formats of head, embeddings and tower
_LONGEST = 1000  # maximum number of patterns, and length of one


@checked_except("__init__", "from_dict")
class QuantizeConfig:
    """Quantisation in Vitrail's own formats, while loading or with `vitrail quantize`.

    Args:
        format: "q4" (4.5 bits per weight with groups of 32) or "q8" (8.5 bits): linear layers of the decoder.
        group: adjacent weights of a row that share a scale: 32, 64 or 128. A layer whose width it does not divide uses
            the next smaller one that does; without one, the layer stays in 16 bits.
        lm_head: LM head: "q8", "q4" or "bf16". A head tied to the embeddings follows them.
        embeddings: token embeddings, likewise.
        vision: linear layers of vision tower and projector, likewise.
        keep: patterns (`*`, `?`, `[…]`) of modules that stay in 16 bits, matched against the whole path, the last name,
            and the path of a parent module.

    Raises:
        ConfigError: an invalid value.
    """

    quant_method = METHOD

    def __init__(
        self,
        format: str = "q4",
        group: int = 32,
        lm_head: str = "q8",
        embeddings: str = "q8",
        vision: str = "q8",
        keep: Sequence[str] = (),
    ) -> None:
        self.format = _one_of("format", format, FORMATS)
        self.group = _one_of("group", group, GROUPS)
        self.lm_head = _one_of("lm_head", lm_head, PARTS)
        self.embeddings = _one_of("embeddings", embeddings, PARTS)
        self.vision = _one_of("vision", vision, PARTS)
        self.keep = _patterns(keep)

    @property
    def title(self) -> str:
        """Name for messages."""
        return str(self.format)

    def is_quantizable(self) -> bool:
        """Return whether layers are packed (always)."""
        return True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizeConfig:
        """Build from the quantization_config of a config.json.

        Raises:
            CheckpointError: unknown layout version.
            ConfigError: unknown key or value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a QuantizeConfig is made of a dict, got {type(values).__name__}.")
        given = dict(values)
        given.pop("quant_method", None)
        version = given.pop("version", None)
        if type(version) is not int or version != LAYOUT_VERSION:
            raise CheckpointError(
                f"quantization_config has the layout version {version!r:.40}; this Vitrail reads version "
                f"{LAYOUT_VERSION}. Use a newer Vitrail, or quantise the model again."
            )
        known = ("format", "group", "lm_head", "embeddings", "vision", "keep")
        unknown = sorted(str(name) for name in given if name not in known)
        if unknown:
            raise ConfigError(f"quantization_config of 'vitrail' does not know {', '.join(unknown)[:400]}.")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the quantization_config for config.json."""
        return {"quant_method": METHOD, "version": LAYOUT_VERSION, **vars(self), "keep": list(self.keep)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantizeConfig) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True)}\n"


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if type(value) is not type(allowed[0]) or value not in allowed:
        words = ", ".join(map(str, allowed))
        raise ConfigError(f"{name} must be one of {words}, got {value!r:.80}.")
    return value


def _patterns(value: Any) -> tuple[str, ...]:
    fits = isinstance(value, (list, tuple)) and all(isinstance(word, str) and word for word in value)
    if not fits or len(value) > _LONGEST or any(len(word) > _LONGEST for word in value):
        raise ConfigError(
            f"keep must be a list of at most {_LONGEST} patterns of module names, got {value!r:.200}."
        )
    return tuple(value)
