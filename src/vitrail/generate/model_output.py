"""ModelOutput: attribute, key and index access for what forward() and generate() return."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class ModelOutput:
    """Base of outputs. Fields that are None do not count for index access, keys() and to_tuple()."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self[name] for name in self.keys())

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of name and value of the fields that are not None."""
        return tuple(zip(self.keys(), self.to_tuple(), strict=True))

    def get(self, key: str, default: Any = None) -> Any:
        """The field's value, or `default` where it is None or unknown."""
        return self[key] if key in self else default  # noqa: SIM401 - no dict

    def __getitem__(self, key: "str | int | slice") -> Any:
        if isinstance(key, str):
            value = getattr(self, key) if key in {f.name for f in fields(self)} else None
            if value is None:
                raise KeyError(key)
            return value
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())
