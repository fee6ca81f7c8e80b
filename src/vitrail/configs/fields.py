"""Check one field of a configuration: its type, finite, not below its minimum."""

import math
from typing import Any

from vitrail.arguments import short
from vitrail.errors import ConfigError


def check_field(
    owner: str, name: str, value: Any, kind: type | tuple[type, ...], *, minimum: float | None = None
) -> None:
    """Raise ConfigError unless `value` is of `kind` (a bool is never a number), finite and at least `minimum`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ConfigError(f"{owner}: {name} must be {names}, got {short(value)}; correct the configuration.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{owner}: {name} must be finite, got {short(value)}; correct the configuration.")
    if minimum is not None and isinstance(value, (int, float)) and value < minimum:
        raise ConfigError(
            f"{owner}: {name} must be at least {minimum}, got {short(value)}; correct the configuration."
        )
