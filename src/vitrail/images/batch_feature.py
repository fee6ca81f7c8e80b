"""BatchFeature: the dict of arrays and tensors that a processor returns, with moves, casts and conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.arguments import checked, short
from vitrail.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch

    from vitrail.images.grid import Grid


@checked
class BatchFeature(dict[str, Any]):
    """A dict whose keys are attributes too, with `to` for its tensors.

    Args:
        data: the content.
        tensor_type: "pt" makes every value a tensor, "np" an array; None leaves lists as they are.

    Raises:
        InputError: lists of unequal lengths, with their key.
    """

    _grids: tuple[Grid, ...] = ()

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: Any = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}; it holds {', '.join(self) or 'nothing'}."
            ) from None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Grids of the images, in order, as computed by the image processor; () where there are none."""
        return self._grids

    def with_grids(self, grids: Sequence[Grid]) -> BatchFeature:
        """Attach the grids of the batch's images and return the batch; a copy as a plain dict loses them."""
        self._grids = tuple(grids)
        return self

    @property
    def data(self) -> BatchFeature:
        """The dict itself, for code written for transformers' wrapper around one."""
        return self

    def convert_to_tensors(self, tensor_type: Any = None) -> BatchFeature:
        """Make every value a tensor ("pt") or an array ("np") in place; None changes nothing."""
        kind = check_tensor_type(tensor_type)
        if kind is None:
            return self
        convert = _as_tensor if kind == "pt" else _as_array
        for key, value in self.items():
            try:
                self[key] = convert(value)
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputError(
                    f"{key!r} cannot become one {'tensor' if kind == 'pt' else 'array'}: its rows differ in "
                    "length or are no numbers. Pad them (padding=True) or leave return_tensors out."
                ) from error
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move all tensors and cast the floating ones, in place; return the same object.

        Args:
            args: as for torch's `Tensor.to`: device, dtype or both.
            kwargs: device, dtype, non_blocking.

        Ids and masks stay whole numbers. Lists of tensors are moved as well.
        """
        device, dtype, non_blocking = _destination(args, kwargs)

        def moved(value: Any) -> Any:
            import torch

            if isinstance(value, torch.Tensor):
                cast = dtype if value.is_floating_point() else None
                return value.to(device=device, dtype=cast, non_blocking=non_blocking)
            if isinstance(value, (list, tuple)):
                return type(value)(moved(item) for item in value)
            return value

        try:
            changed = {key: moved(value) for key, value in self.items()}
        except AssertionError as error:  # torch's error for a build without this kind of device
            raise InputError(f"This torch cannot move tensors to {device}: {error}. Use 'cpu'.") from error
        self.update(changed)
        return self


def check_tensor_type(tensor_type: Any) -> str | None:
    """Return `return_tensors` as "pt", "np" or None; enumeration members count by their value.

    Raises:
        UnsupportedError: a framework that Vitrail does not support.
        InputError: another name.
    """
    kind = getattr(tensor_type, "value", tensor_type)
    if kind is None:
        return None
    if not isinstance(kind, str):
        raise InputError(f"return_tensors is 'pt', 'np' or None; got {short(tensor_type)}.")
    if kind in ("pt", "np"):
        return kind
    if kind in ("tf", "jax", "mlx"):
        raise UnsupportedError(f"return_tensors={kind!r} is not supported; use 'pt' or 'np'.")
    raise InputError(f"return_tensors is 'pt', 'np' or None; got {short(tensor_type)}.")


def _as_tensor(value: Any) -> torch.Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return torch.stack(list(value))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    # A list of arrays becomes one array first: torch would convert it element by element.
    first = value
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return torch.from_numpy(_as_array(value)) if isinstance(first, np.ndarray) else torch.tensor(value)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "US":
        raise ValueError("not a rectangle of numbers")
    return array


def _destination(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, bool]:
    """Return device, dtype and non_blocking of the arguments of `to`."""
    import torch

    named = dict(kwargs)
    non_blocking = bool(named.pop("non_blocking", False))
    given = [("device", named.pop("device", None)), ("dtype", named.pop("dtype", None))]
    if named:
        raise InputError(
            f"BatchFeature.to does not know {', '.join(sorted(named))}; it takes device and dtype."
        )
    given += [("dtype" if isinstance(value, torch.dtype) else "device", value) for value in args]
    found: dict[str, Any] = {}
    for name, value in given:
        if value is None:
            continue
        if (
            name in found
            or isinstance(value, bool)
            or not isinstance(value, torch.dtype if name == "dtype" else (str, int, torch.device))
        ):
            raise InputError(f"BatchFeature.to takes one device and one dtype; got {value!r} as {name}.")
        found[name] = value
    try:
        device = torch.device(found["device"]) if "device" in found else None
    except RuntimeError as error:
        raise InputError(f"{found['device']!r} is no device of torch: {error}") from error
    return device, found.get("dtype"), non_blocking
