"""Checks of public calls' arguments by their annotations, before any work is done."""

import collections.abc
import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

from vitrail.errors import ArgumentError

Target = TypeVar("Target")

# Forwarded keywords, and parameters of any type, by name: those that may be arrays …
_ARRAYS = re.compile(
    "ids?$|mask|embeds|sizes|values?$|position|mean$|std$|labels|image|inputs|seed|prompt|source|sequences|outputs|data|"
    "content|tensor$|state_dict|features|beam_idx|batch$|past|weights?$|states$"
)
# … and those of one type in every call.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("revision", "tokenizer_mode", "variant"), str | None),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), bool | None),
    **dict.fromkeys(("trust_remote_code", "use_fast", "local_files_only", "force_download", "vision"), bool),
    **dict.fromkeys(("on_event", "on_prompt", "stop", "progress", "pages"), Callable | None),
    **dict.fromkeys(("max_image_tokens",), int | None),
    "cache_dir": str | os.PathLike | None,
}

_COLLECTIONS: dict[Any, tuple[Any, str]] = {
    list: ((list, tuple), "a list"),
    tuple: ((list, tuple), "a tuple"),
    collections.abc.Sequence: (collections.abc.Sequence, "a list"),
    collections.abc.Iterable: (collections.abc.Iterable, "a list"),
    collections.abc.Collection: (collections.abc.Collection, "a list"),
    set: (collections.abc.Set, "a set"),
    dict: (Mapping, "a mapping"),
    Mapping: (Mapping, "a mapping"),
    collections.abc.MutableMapping: (collections.abc.MutableMapping, "a mapping"),
}


def checked(target: Target) -> Target:
    """Check the arguments of a public function, or of every public method in a class's own body.

    Unknown names, missing arguments and values of another type than annotated raise ArgumentError. Annotations without
    a type (Any, protocols, type variables) are not checked.
    """
    return _checked(target, ())


def checked_except(*methods: str) -> Callable[[Target], Target]:
    """Check a class likewise, but of these methods, which check their own values, only the argument names.

    "method.parameter" exempts one parameter.
    """
    return lambda target: _checked(target, methods)


def _checked(target: Target, names_only: tuple[str, ...]) -> Target:
    if not isinstance(target, type):
        return typing.cast(Target, _wrapped(typing.cast(Any, target)))
    for name, member in list(vars(target).items()):
        own = tuple(entry for entry in names_only if entry.startswith(f"{name}."))
        kinds = name not in names_only
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, (classmethod, staticmethod)):
            setattr(target, name, type(member)(_wrapped(member.__func__, kinds, own)))
        elif inspect.isfunction(member):
            setattr(target, name, _wrapped(member, kinds, own))
        elif isinstance(member, property) and member.fset is not None:
            setattr(target, name, member.setter(_wrapped(member.fset, kinds)))
    return target


def check(owner: str, name: str, value: Any, hint: Any) -> None:
    """Raise ArgumentError unless `value`, the argument `name` of `owner`, fits the annotation `hint`."""
    if not _fits(value, hint):
        if isinstance(value, (str, os.PathLike)) and not _is_file_name(value) and _takes_path(hint):
            raise ArgumentError(
                f"{owner}: {name} is no name that a file can have; got {short(os.fspath(value))}."
            )
        raise ArgumentError(f"{owner}: {name} must be {_described(hint)}; got {shown(value)}.")


def check_methods(name: str, value: Any, *methods: str) -> None:
    """Raise ArgumentError unless `value` has these methods, for arguments without a class to check."""
    lacking = [method for method in methods if not callable(getattr(value, method, None))]
    if lacking or isinstance(value, type):
        raise ArgumentError(f"{name} must be an object with {'() and '.join(methods)}(); got {shown(value)}.")


def shown(value: Any) -> str:
    """Return a value for an error message: short, and by its type unless a plain one."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if type(value) in (bool, int, float):
        return f"a huge {kind}" if isinstance(value, int) and abs(value) > 10**30 else f"{kind} {value!r}"
    if isinstance(value, str):
        return f"the string {value[:40]!a}"
    shape = getattr(value, "shape", None)
    return f"a value of type {kind}" + (f" and shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _wrapped(
    function: Callable[..., Any], with_kinds: bool = True, unchecked: tuple[str, ...] = ()
) -> Callable[..., Any]:
    @functools.cache  # on the first call: annotations may name later definitions of a module
    def plan() -> tuple[inspect.Signature, dict[str, Any], str | None]:
        signature = inspect.signature(function)
        kinds = _hints(function) if with_kinds else {}
        parameters = signature.parameters.values()
        further = next((found.name for found in parameters if found.kind == found.VAR_KEYWORD), None)
        plain = {
            found.name for found in parameters if found.kind not in (found.VAR_POSITIONAL, found.VAR_KEYWORD)
        }
        kept = plain - {method.partition(".")[2] for method in unchecked}
        return (
            signature,
            {name: hint for name, hint in kinds.items() if name in kept and not _is_open(hint)},
            further,
        )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        signature, kinds, further = plan()
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(_misbound(_owner(function, args), str(error), kwargs, signature)) from None
        for name, value in given.items():
            if name == further:
                for key, option in value.items():
                    if key in _KINDS:
                        check(_owner(function, args), key, option, _KINDS[key])
                    _refuse_array(function, args, key, option)
            elif value is not signature.parameters[name].default:
                if name not in kinds:
                    _refuse_array(function, args, name, value)
                elif not _fits(value, kinds[name]):
                    check(_owner(function, args), name, value, kinds[name])
        return function(*args, **kwargs)

    return call


def _refuse_array(function: Callable[..., Any], args: tuple[Any, ...], name: str, value: Any) -> None:
    """Raise ArgumentError for an array or tensor of several numbers as an option: its truth value is undefined."""
    if getattr(value, "ndim", 0) and hasattr(value, "__array__") and not _ARRAYS.search(name):
        raise ArgumentError(f"{_owner(function, args)}: {name} cannot be an array; got {shown(value)}.")


class _Short(reprlib.Repr):
    """Reprs of at most some hundred characters."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 256:  # perhaps beyond Python's limit of digits
            return f"a whole number of {x.bit_length():,} bits"
        return repr(x)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: Any) -> str:
    """Return the repr of any value on one line, cut if long."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}…"


def _owner(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Return a function's name in errors: a method's with the class that it was called on."""
    holder, _, name = function.__qualname__.rpartition(".")
    kind = args[0] if args and isinstance(args[0], type) else type(args[0] if args else None)
    if holder and any(base.__qualname__ == holder for base in kind.__mro__):
        holder = kind.__name__
    return f"{holder}.{name}".removeprefix(".").removesuffix(".__init__").removesuffix(".__call__")


def _misbound(owner: str, error: str, kwargs: Mapping[str, Any], signature: inspect.Signature) -> str:
    known = [name for name in signature.parameters if name not in ("self", "cls")]
    for name in kwargs:
        if name not in known and repr(name) in error:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}."
            return f"{owner} does not know the argument {name!r}; {hint}"
    return f"{owner}: {error}; it takes {', '.join(known) or 'no argument'}."


class _Names(dict[str, Any]):
    """The names in annotations: the module's, Python's, else Any (imported for type checkers only)."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        found = self.module.get(name, getattr(sys.modules["builtins"], name, None))
        if found is None and name == "torch":
            found = sys.modules.get("torch")
        return Any if found is None else found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, without unreadable ones."""
    names = _Names(function.__globals__)
    found: dict[str, Any] = {}
    for name, written in function.__annotations__.items():
        holder = types.SimpleNamespace(__annotations__={name: written})
        try:
            found |= typing.get_type_hints(holder, {}, names)
        except (AttributeError, NameError, SyntaxError, TypeError):
            continue  # a name imported for type checkers only
    return found


def _is_open(hint: Any) -> bool:
    """Return whether every value fits."""
    if hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, TypeVar):
        return True
    return typing.get_origin(hint) in (Union, types.UnionType) and any(map(_is_open, typing.get_args(hint)))


def _fits(value: Any, hint: Any) -> bool:
    if _is_open(hint):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if isinstance(value, str) and any(_is_path(part) for part in arguments):
            return _is_file_name(value)
        return any(_fits(value, part) for part in arguments)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if hint is bool:
        return isinstance(value, (bool, type(None))) or (
            _is_integer(value) and operator.index(value) in (0, 1)
        )
    if hint is int:
        return _is_integer(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if _is_path(hint):
        return isinstance(value, os.PathLike) and _is_file_name(value)
    if (origin or hint) is collections.abc.Callable:
        return callable(value)
    kind = origin or hint
    if kind in _COLLECTIONS:
        return _is_collection(value, kind, arguments)
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    # Another library's configuration of the same class name is accepted.
    return isinstance(value, kind) or any(base.__name__ == kind.__name__ for base in type(value).__mro__)


def _is_collection(value: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    accepted, _ = _COLLECTIONS[kind]
    if not isinstance(value, accepted) or isinstance(value, (str, bytes, bytearray)):
        return False
    if isinstance(value, Mapping):
        if len(arguments) != 2:
            return not arguments or _fits_all(value, arguments[0])
        return _fits_all(value, arguments[0]) and _fits_all(value.values(), arguments[1])
    if not isinstance(value, (list, tuple, collections.abc.Set)) or not arguments:
        return True
    if kind is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return _fits_all(value, arguments[0])


def _fits_all(values: collections.abc.Iterable[Any], hint: Any) -> bool:
    return _is_open(hint) or all(_fits(value, hint) for value in values)


def _is_integer(value: Any) -> bool:
    if type(value) is int:
        return True
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: torch's, for tensors of several numbers
        return False
    return True


def _is_path(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _takes_path(hint: Any) -> bool:
    return any(map(_is_path, typing.get_args(hint) or (hint,)))


def _is_file_name(value: "str | os.PathLike[Any]") -> bool:
    """Return whether the system accepts a file name."""
    try:
        name = os.fspath(value)
        written = os.fsencode(name) if isinstance(name, str) else b"\0"
        return (
            b"\0" not in written
            and len(written) < 4096
            and all(len(part) < 256 for part in written.split(b"/"))
        )
    except (TypeError, UnicodeError):
        return False


def _described(hint: Any) -> str:
    plain = {str: "a string", int: "an integer", float: "a number", bool: "True or False", bytes: "bytes"}
    if hint in plain:
        return plain[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        words = [_described(part) for part in arguments]
        if any(map(_is_path, arguments)):
            words = [word for word in words if word != "a string"]
        return " or ".join(dict.fromkeys(words))
    if hint is None or hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if _is_path(hint):
        return "a path"
    if (origin or hint) is collections.abc.Callable:
        return "a callable"
    kind = origin or hint
    if kind in _COLLECTIONS:
        _, word = _COLLECTIONS[kind]
        inner = [part for part in arguments[-1:] if part in plain] or [
            part for part in arguments[:1] if part in plain
        ]
        plural = {str: "strings", int: "integers", float: "numbers", bool: "booleans", bytes: "bytes"}
        return f"{word} of {plural[inner[0]]}" if inner and not issubclass(kind, Mapping) else word
    return f"a {getattr(kind, '__name__', str(kind))}"
