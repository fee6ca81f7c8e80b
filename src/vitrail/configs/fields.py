"""Check one field of a configuration: its type, finite, not below its minimum; the name of a torch.dtype."""

import math
from typing import Any

from vitrail.errors import ConfigError


def check_field(
    owner: str, name: str, value: Any, kind: type | tuple[type, ...], *, minimum: float | None = None
) -> None:
    """Raise ConfigError unless `value` is of `kind` (a bool is never a number), finite and at least `minimum`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ConfigError(f"{owner}: {name} must be {names}, got {value!r}; correct the configuration.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{owner}: {name} must be finite, got {value!r}; correct the configuration.")
    if minimum is not None and isinstance(value, (int, float)) and value < minimum:
        raise ConfigError(
            f"{owner}: {name} must be at least {minimum}, got {value!r}; correct the configuration."
        )


# Names of torch's types, so that a configuration is checked without importing torch.
_DTYPES = """
    float32 float bfloat16 float16 half float64 double float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz
    float8_e8m0fnu uint8 int8 int16 int32 int64
"""


def check_dtype(owner: str, value: Any) -> str | None:
    """The name of a torch.dtype that is given as one or by name; None for None. ConfigError for anything else."""
    name = str(value).removeprefix("torch.")
    if value is None or (
        name in _DTYPES.split() and (isinstance(value, str) or type(value).__module__ == "torch")
    ):
        return None if value is None else name
    raise ConfigError(
        f"{owner}: dtype must be a torch dtype or its name, such as 'bfloat16', got {value!r}; correct the configuration."
    )
