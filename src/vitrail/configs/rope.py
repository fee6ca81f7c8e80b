"""One spelling of a configuration's rotary settings: (theta, scaling). No tensors, no angles."""

from collections.abc import Mapping
from typing import Any

from vitrail.arguments import short
from vitrail.configs.fields import check_field
from vitrail.errors import ConfigError
from vitrail.files.keywords import refuse_unknown

# "axial": transformers 5's name for the tower's two-dimensional RoPE, without further settings.
PLAIN_TYPES = ("default", "axial")
_NAMES = ("rope_theta", "rope_type", "type")
_YARN = (
    *_NAMES, "attention_factor", "beta_fast", "beta_slow", "factor", "llama_4_scaling_beta", "max_position_embeddings",
    "mscale", "mscale_all_dim", "original_max_position_embeddings", "truncate",
)  # fmt: skip


def check_given(given: Mapping[str, Any], kind: Any) -> None:
    """Raise ConfigError for keyword settings unused by this rope_type; a file may hold any."""
    asked = [name for name, value in given.items() if value is not None]
    if kind in PLAIN_TYPES and (idle := [name for name in asked if name not in _NAMES]):
        raise ConfigError(
            f"rope_parameters: {', '.join(map(str, idle))[:200]} changes nothing for rope_type {short(kind)}; give "
            "'rope_type': 'yarn' beside it."
        )
    if kind == "yarn":
        refuse_unknown("rope_parameters of type yarn", asked, _YARN, error=ConfigError)


def take_rope(
    kwargs: dict[str, Any], theta: Any, *, read: bool = True
) -> tuple[float, dict[str, Any] | None]:
    """Remove the rotary keys from `kwargs` and return (theta, scaling).

    Accepts the older top-level `rope_theta` with `rope_scaling` and the newer `rope_parameters`
    {rope_theta, rope_type | type, …}.

    Args:
        read: the keys come from a file, not from a call.

    Returns:
        The base, and a dict with rope_type or None for plain RoPE.
    """
    parameters = kwargs.pop("rope_parameters", None)
    scaling = kwargs.pop("rope_scaling", None)
    chosen = parameters if parameters is not None else scaling
    if chosen is None:
        return _theta(theta), None
    if not isinstance(chosen, dict):
        raise ConfigError(
            f"rope_parameters must be an object of keys, got {short(chosen)}; correct the configuration."
        )
    chosen = dict(chosen)
    theta = _theta(chosen.pop("rope_theta", theta))
    kind = chosen.pop("rope_type", None) or chosen.get("type") or "default"
    chosen.pop("type", None)
    check_field("rope_parameters", "rope_type", kind, str)
    if not read:
        check_given(chosen, kind)
    if kind not in PLAIN_TYPES:
        return theta, {"rope_type": kind, **chosen}
    if chosen.get("llama_4_scaling_beta") is not None:
        raise ConfigError(f"rope_parameters: llama_4_scaling_beta needs rope_type 'yarn', got {short(kind)}.")
    return theta, None


def check_yarn(theta: float, scaling: dict[str, Any]) -> None:
    """Raise ConfigError where YaRN's settings are missing or out of range."""
    owner, absent = "rope_parameters of type yarn", type(None)
    check_field(owner, "rope_theta", theta, float, minimum=1.0 + 1e-6)
    check_field(owner, "factor", scaling.get("factor"), (int, float), minimum=1)
    for name in (
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "llama_4_scaling_beta",
    ):
        check_field(owner, name, scaling.get(name), (int, float, absent), minimum=0)
    for name, value in scaling.items():
        if isinstance(value, int):
            check_field(owner, name, value, (bool, int))
    check_field(owner, "truncate", scaling.get("truncate", True), bool)
    scaled = scaling.get("llama_4_scaling_beta") is not None  # in steps of the original context
    original = scaling.get("original_max_position_embeddings")
    check_field(
        owner, "original_max_position_embeddings", original, int if scaled else (int, absent), minimum=1
    )


def _theta(value: Any) -> float:
    check_field("rope_parameters", "rope_theta", value, (int, float))
    if value <= 0:
        raise ConfigError(
            f"rope_theta must be a positive number, got {short(value)}; correct the configuration."
        )
    return float(value)
