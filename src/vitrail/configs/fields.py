"""Checks of one field of a configuration: type, finite, limits; the name of a torch.dtype."""

import math
from typing import Any, Final

from vitrail.arguments import short
from vitrail.errors import ConfigError

COUNT_LIMIT: Final = 2**31 - 1  # positions, ids and all counts without a smaller limit
NUMBER_LIMIT: Final = 1e30  # of a float: float32 holds it and its products
TEXT_LIMIT: Final = 1 << 20
LIST_LIMIT: Final = 1 << 16
CELL_LIMIT: Final = 2048  # pixels along the side of one image token's square

# Far above every model of any family: a wrong number allocates nothing and overflows nothing.
LIMITS: Final[dict[str, float]] = {
    "attention_dropout": 1,
    "factor": 1e6,
    "head_dim": 1 << 13,
    "hidden_size": 1 << 17,
    "image_size": 1 << 16,
    "initializer_range": 1e3,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_channels": 1 << 6,
    "num_hidden_layers": 1 << 10,
    "num_key_value_heads": 1 << 12,
    "num_return_sequences": 1 << 16,
    "patch_size": 1 << 10,
    "rms_norm_eps": 1,
    "spatial_merge_size": 1 << 6,
    "vocab_size": 1 << 24,
}
# The names of params.json for the same numbers.
LIMITS.update(
    dim=LIMITS["hidden_size"],
    hidden_dim=LIMITS["intermediate_size"],
    n_heads=LIMITS["num_attention_heads"],
    n_kv_heads=LIMITS["num_key_value_heads"],
    n_layers=LIMITS["num_hidden_layers"],
    norm_eps=LIMITS["rms_norm_eps"],
)


def check_field(
    owner: str, name: str, value: Any, kind: type | tuple[type, ...], *, minimum: float | None = None
) -> None:
    """Check the type of a value, that it is finite, and its limits.

    Args:
        kind: accepted types; a bool is never a number.

    Raises:
        ConfigError: naming the field; the largest value is that of `LIMITS`, else a general one per type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ConfigError(f"{owner}: {name} must be {names}, got {short(value)}; correct the configuration.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{owner}: {name} must be finite, got {value!r}; correct the configuration.")
    if isinstance(value, (str, list, tuple, dict)):
        most = TEXT_LIMIT if isinstance(value, str) else LIST_LIMIT
        if len(value) > most:
            raise ConfigError(
                f"{owner}: {name} must have at most {most:,} entries, got {len(value):,}; correct the configuration."
            )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if minimum is not None and value < minimum:
        raise ConfigError(
            f"{owner}: {name} must be at least {minimum}, got {short(value)}; correct the configuration."
        )
    maximum = LIMITS.get(name, NUMBER_LIMIT if float in kinds else COUNT_LIMIT)
    if not -maximum - 1 <= value <= maximum:
        raise ConfigError(
            f"{owner}: {name} must be at most {maximum:.10g}, got {short(value)}; correct the configuration."
        )


def check_cell(owner: str, patch_size: int, merge: int) -> None:
    """Raise ConfigError where one image token covers a square with sides above CELL_LIMIT pixels."""
    if patch_size * merge > CELL_LIMIT:
        raise ConfigError(
            f"{owner}: patch_size {patch_size} · spatial_merge_size {merge} must be at most {CELL_LIMIT:,} pixels; correct "
            "the configuration."
        )


# Names of torch's types: checking a configuration imports no torch.
_DTYPES = """
    float32 float bfloat16 float16 half float64 double float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz
    float8_e8m0fnu uint8 int8 int16 int32 int64
"""


def check_dtype(owner: str, value: Any) -> str | None:
    """Return the name of a torch.dtype given as such or by name, None for None; ConfigError for anything else."""
    name = str(value).removeprefix("torch.")
    if value is None or (
        name in _DTYPES.split() and (isinstance(value, str) or type(value).__module__ == "torch")
    ):
        return None if value is None else name
    raise ConfigError(
        f"{owner}: dtype must be a torch dtype or its name, such as 'bfloat16', got {short(value)}; correct it."
    )
