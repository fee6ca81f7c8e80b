"""ModelOutput: attribute, key and index access for the outputs of forward() and generate()."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vitrail.errors import UnsupportedError


@dataclass
class ModelOutput(dict[str, Any]):
    """Base of outputs. Fields that are None are left out of index access, keys() and to_tuple().

    It is a dict of its fields, as in transformers, for trainers that test for dicts.
    """

    def __post_init__(self) -> None:
        """Take the fields from one mapping or iterator of pairs: accelerate builds its float32 copies this way."""
        values = [getattr(self, field.name) for field in fields(self)]
        if not values:
            return
        first, *others = values
        if isinstance(first, Mapping) and not set(first) <= self.__dataclass_fields__.keys():
            return  # a mapping of other things is a field's value
        if isinstance(first, (Mapping, Iterator)) and all(value is None for value in others):
            setattr(self, fields(self)[0].name, None)
            for name, value in dict(first).items():
                self[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self.__dataclass_fields__:
            return
        if value is None:
            super().pop(name, None)
        else:
            super().__setitem__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        setattr(self, key, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            f"the fields of {type(self).__name__} cannot be taken away; dict(output) makes a dict."
        )

    __delitem__ = pop = popitem = clear = update = setdefault = _refuse

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(self[name] for name in self.keys())

    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the names of the fields that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:  # type: ignore[override]
        """Return the fields that are not None."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:  # type: ignore[override]
        """Return (name, value) of the fields that are not None."""
        return tuple(zip(self.keys(), self.to_tuple(), strict=True))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field's value, or `default` if it is None or unknown."""
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
