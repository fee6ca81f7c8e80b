"""One spelling for the rotary settings of a configuration: (theta, scaling). No tensors, no angles."""

from typing import Any

from vitrail.errors import ConfigError

# "axial" is transformers 5's word for the tower's two-dimensional rotation, which has no further settings.
PLAIN_TYPES = ("default", "axial")


def take_rope(kwargs: dict[str, Any], theta: Any) -> tuple[float, dict[str, Any] | None]:
    """Remove the rotary keys from `kwargs`; return (theta, scaling or None).

    Accepts the older top-level `rope_theta` with `rope_scaling` and the newer `rope_parameters`
    {rope_theta, rope_type | type, …}. `scaling` is a dict with rope_type, or None for the plain rotation.
    """
    parameters = kwargs.pop("rope_parameters", None)
    scaling = kwargs.pop("rope_scaling", None)
    chosen = parameters if parameters is not None else scaling
    if chosen is None:
        return _theta(theta), None
    if not isinstance(chosen, dict):
        raise ConfigError(
            f"rope_parameters must be an object of keys, got {chosen!r}; correct the configuration."
        )
    chosen = dict(chosen)
    theta = _theta(chosen.pop("rope_theta", theta))
    kind = chosen.pop("rope_type", None) or chosen.get("type") or "default"
    chosen.pop("type", None)
    if kind in PLAIN_TYPES:
        return theta, None
    return theta, {"rope_type": kind, **chosen}


def _theta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ConfigError(f"rope_theta must be a positive number, got {value!r}; correct the configuration.")
    return float(value)
