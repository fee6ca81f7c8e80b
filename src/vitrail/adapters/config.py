"""LoraConfig: the content of an adapter_config.json, with PEFT's names and defaults. Finds and makes no layers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vitrail.adapters.pattern import PatternTable
from vitrail.arguments import checked_except, short
from vitrail.errors import ConfigError, UnsupportedError

ALL_LINEAR = "all-linear"
_LONGEST_PATH = 4096
_INITS = (True, False, "gaussian", "orthogonal")
# Inits of PEFT that move a part of the base weights into the adapter: the adapter alone is incomplete.
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Inits from data or from the base weights, which stay unchanged: a saved one is an ordinary adapter.
_DRAWN_ELSEWHERE = ("eva", "mica")
# PEFT's keys of functions that Vitrail lacks: harmless while unset.
_NOT_HERE = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config", "fan_in_fan_out",
)  # fmt: skip
# Keys without effect on the layers; settings of an init matter only with that init, which is checked itself.
_NOTES = (
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode", "loftq_config",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "unsloth_fixed",
)  # fmt: skip


@checked_except("__init__", "from_dict")
@dataclass
class LoraConfig:
    """An adapter of low rank: W + s·B·A with A (r, in), B (out, r), s = lora_alpha / r (arXiv 2106.09685).

    Arguments, defaults and meanings are PEFT's.

    Args:
        r, lora_alpha: rank and scale. rank_pattern, alpha_pattern: other values for modules whose name ends with a key
            (a pattern). use_rslora: s = lora_alpha / √r.
        target_modules: a list of endings of module names, one pattern for whole names, or "all-linear": every linear
            layer but the head. exclude_modules likewise; layers_to_transform, layers_pattern: only these numbers.
        lora_dropout: share of the adapter's input that is dropped in training.
        use_dora: train each row's length too (arXiv 2402.09353).
        modules_to_save: modules that are trained and saved whole.
        init_lora_weights: True: B·A = 0 with B zero; "gaussian": the same with a normal A; "orthogonal": B·A = 0 with
            both random; False: B is random.
        bias: "none" only.

    Raises:
        ConfigError: values without meaning.
        UnsupportedError: functions of PEFT that Vitrail lacks.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        _whole("r", self.r)
        _positive("lora_alpha", self.lora_alpha)
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout!r}.")
        if self.bias != "none":
            raise UnsupportedError(f"bias={self.bias!r} is not supported; adapters here train no biases.")
        if self.init_lora_weights not in _INITS:
            raise UnsupportedError(_refused_init(self.init_lora_weights))
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            setattr(self, name, _names(name, getattr(self, name), one=name != "modules_to_save"))
        for name, check in (("rank_pattern", _whole), ("alpha_pattern", _positive)):
            table = getattr(self, name) or {}
            if not isinstance(table, Mapping):
                raise ConfigError(f"{name} must map patterns to numbers, got {table!r:.100}.")
            for key, value in table.items():
                check(f"{name}[{key!r}]", value)
            setattr(self, name, dict(table))
        for name in ("use_rslora", "use_dora"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {short(getattr(self, name))}.")
        base = self.base_model_name_or_path
        if base is not None and (not isinstance(base, str) or "\0" in base or len(base) > _LONGEST_PATH):
            raise ConfigError(f"base_model_name_or_path must be a name or a path, got {short(base)}.")
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.layers_to_transform
        numbers = [layers] if isinstance(layers, int) else layers
        if numbers is None:
            return
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ConfigError(f"layers_to_transform must be numbers of layers, got {layers!r:.100}.")
        if not isinstance(self.target_modules, list):
            raise ConfigError("layers_to_transform needs target_modules to be a list of names.")

    def rank(self, name: str) -> int:
        """Return r for the module `name`."""
        return int(self._table("rank_pattern").get(name, self.r))

    def alpha(self, name: str) -> float:
        """Return lora_alpha for the module `name`."""
        return float(self._table("alpha_pattern").get(name, self.lora_alpha))

    def _table(self, name: str) -> PatternTable:
        """Return the parsed patterns of rank_pattern or alpha_pattern, parsed again after a change."""
        tables: dict[str, PatternTable] = self.__dict__.setdefault("_tables", {})
        if name not in tables or tables[name].table != getattr(self, name):
            tables[name] = PatternTable(getattr(self, name))
        return tables[name]

    def scaling(self, name: str, rank: int) -> float:
        """Return s, the factor of B·A, for the module `name`."""
        return self.alpha(name) / (rank**0.5 if self.use_rslora else rank)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoraConfig:
        """Make one from the content of an adapter_config.json. Raises the class's errors."""
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"an adapter is described by a LoraConfig or a dict, got {type(values).__name__}."
            )
        kind = str(
            getattr(values.get("peft_type"), "value", values.get("peft_type", "LORA"))
        )  # PEFT has an enum
        if kind != "LORA":
            raise UnsupportedError(f"peft_type {kind!r} is not supported; Vitrail reads LORA adapters.")
        for name in _NOT_HERE:
            if values.get(name):
                raise UnsupportedError(
                    f"{name}={values[name]!r:.100} in adapter_config.json is not supported."
                )
        own = {entry.name for entry in fields(cls)}
        unknown = [
            name for name in values if values[name] and name not in {*own, *_NOT_HERE, *_NOTES, "peft_type"}
        ]
        if unknown:
            warnings.warn(f"adapter_config.json: {', '.join(unknown)[:500]} is not read", stacklevel=2)
        given = {name: value for name, value in values.items() if name in own and value is not None}
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys that PEFT writes into adapter_config.json, without unset ones."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values |= {"peft_type": "LORA", "inference_mode": True, "task_type": None, "fan_in_fan_out": False}
        if isinstance(self.target_modules, list):
            values["target_modules"] = sorted(self.target_modules)
        return values

    def to_json(self) -> str:
        """Return the text of an adapter_config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def saved_values(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of an adapter_config.json as they describe the tensors beside it, named `keys`.

    The init no longer matters if the base weights were left unchanged, nor does a setting for biases if the adapted
    layers had none.
    """
    found = dict(values)
    if str(found.get("init_lora_weights")) in _DRAWN_ELSEWHERE:
        found["init_lora_weights"] = True
    if found.get("bias") in ("all", "lora_only") and not any(key.endswith(".bias") for key in keys):
        found["bias"] = "none"
    return found


def _refused_init(how: Any) -> str:
    known = "use True, False, 'gaussian' or 'orthogonal'"
    if str(how).startswith(_BASE_CHANGED):
        return (
            f"init_lora_weights={how!r} is not supported: it takes a part out of the base weights, which the adapter's "
            "files do not hold; save it with PEFT's path_initial_model_for_weight_conversion, or "
            + known
            + "."
        )
    if how in _DRAWN_ELSEWHERE:
        return (
            f"init_lora_weights={how!r} is not supported for a fresh adapter; begin it with PEFT and load what that "
            f"saves, or {known}."
        )
    return f"init_lora_weights={how!r:.100} is no init that PEFT has; {known}."


def as_lora_config(value: Any) -> LoraConfig:
    """Return a LoraConfig as it is; convert PEFT's or its dict. ConfigError for anything else."""
    if isinstance(value, LoraConfig):
        return value
    values = value.to_dict() if callable(getattr(value, "to_dict", None)) else value
    if not isinstance(values, Mapping):
        raise ConfigError(f"an adapter is described by a LoraConfig or a dict, got {type(value).__name__}.")
    return LoraConfig.from_dict(values)


def _whole(name: str, value: Any) -> None:
    if type(value) is not int or not 0 < value <= 65536:
        raise ConfigError(f"{name} must be a whole number from 1 to 65536, got {value!r}.")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(f"{name} must be a number above 0, got {value!r}.")


def _names(name: str, value: Any, *, one: bool) -> list[str] | str | None:
    """Return a text where one is allowed, or a list of texts."""
    if value is None or (one and isinstance(value, str)):
        return value
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, str):
        found = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        if all(isinstance(item, str) and item for item in found):
            return found
    raise ConfigError(f"{name} must be {'a text or ' if one else ''}a list of names, got {value!r:.100}.")
