"""Device placement: reads device_map, and installs hooks between modules on different devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vitrail.errors import InputError, UnsupportedError
from vitrail.files.formatting import listed

Device: TypeAlias = "str | int | torch.device"
DeviceMap: TypeAlias = "Device | Mapping[str, Device] | None"


class Placement:
    """Device of every module: module paths ("" is all) → devices; the longest matching path applies."""

    def __init__(self, devices: Mapping[str, torch.device]) -> None:
        self.devices = dict(devices)

    def of(self, name: str) -> torch.device:
        """Return the device of the module or tensor at path `name`."""
        device = self._lookup(name)
        if device is None:
            raise InputError(f"device_map says nothing of {name}.")
        return device

    def covers(self, name: str) -> bool:
        """Return whether the map has a device for `name`."""
        return self._lookup(name) is not None

    def _lookup(self, name: str) -> torch.device | None:
        while name and name not in self.devices:
            name = name.rpartition(".")[0]
        return self.devices.get(name)


def placement(model: nn.Module, device_map: DeviceMap) -> Placement:
    """Resolve `device_map` for `model`.

    Args:
        model: to place.
        device_map: None or "cpu": the CPU. "auto": the accelerator; with several, layers in proportion to their free
            memory; without any, the CPU. A device name, number or torch.device: that device. A mapping of module paths
            to devices: as given.

    Raises:
        InputError: unknown paths, modules without a device, or an unavailable device.
    """
    if device_map is None:
        return Placement({"": torch.device("cpu")})
    if isinstance(device_map, Mapping):
        return _by_paths(model, device_map)
    if device_map == "auto":
        return _automatic(model, _accelerators())
    return Placement({"": _device(device_map)})


def _by_paths(model: nn.Module, device_map: Mapping[str, Device]) -> Placement:
    result = Placement({path: _device(device) for path, device in device_map.items()})
    tensors = [name for name, _ in _tensors(model)]
    paths = {name for name, _ in model.named_modules(remove_duplicate=False)} | set(tensors)
    unknown = [path for path in device_map if path not in paths]
    if unknown:
        raise InputError(f"device_map names what {type(model).__name__} does not have: {', '.join(unknown)}.")
    left_out = [name for name in tensors if not result.covers(name)]
    if left_out:
        raise InputError(
            f"device_map leaves out {listed(left_out)}; add their modules, or '' for all the rest."
        )
    return result


def _device(value: Device) -> torch.device:
    """Parse one entry; InputError if it is not a device, or not available."""
    if value == "disk":
        raise UnsupportedError("device_map 'disk' is not supported; put modules on 'cpu' instead.")
    try:
        device = _numbered(value) if isinstance(value, int) else torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device_map {value!r} is no device; 'auto', 'cpu', 'cuda' or a number was expected."
        ) from error
    if device.type in ("cpu", "meta"):
        return device
    kind, count = _accelerator()
    if kind != device.type or (device.index or 0) >= count:
        raise InputError(
            f"device_map asks for {device}, which this machine does not have; use 'cpu' or 'auto'."
        )
    return device


def _numbered(value: int) -> torch.device:
    kind, count = _accelerator()
    if isinstance(value, bool) or kind is None or not 0 <= value < count:
        raise InputError(
            f"device_map {value!r} asks for an accelerator that this machine does not have; use 'cpu'."
        )
    return torch.device(kind, value)


def _accelerator() -> tuple[str | None, int]:
    """Return the accelerator type of this machine, and how many. (torch.accelerator is newer than torch 2.5.)"""
    for kind in ("cuda", "xpu", "mps"):
        module = getattr(torch, kind, None)
        if module is not None and (
            torch.backends.mps.is_available() if kind == "mps" else module.is_available()
        ):
            return kind, module.device_count()
    return None, 0


def _accelerators() -> list[tuple[torch.device, int]]:
    """Return every accelerator with its free bytes, or with 1 if unknown."""
    kind, count = _accelerator()
    devices = [torch.device(kind, index) for index in range(count)] if kind else []
    if kind != "cuda":
        return [(device, 1) for device in devices]
    return [(device, torch.cuda.mem_get_info(device)[0]) for device in devices]


def _automatic(model: nn.Module, accelerators: Sequence[tuple[torch.device, int]]) -> Placement:
    if not accelerators:
        return Placement({"": torch.device("cpu")})
    if len(accelerators) == 1:
        return Placement({"": accelerators[0][0]})
    return Placement(spread(model, accelerators))


def spread(model: nn.Module, accelerators: Sequence[tuple[torch.device, int]]) -> dict[str, torch.device]:
    """Map module paths to devices: in the model's order, each device up to its share of bytes (device, weight).

    Elements of a ModuleList are never split.
    """
    units = _units(model, "")
    total, weights = sum(size for _, size in units), sum(weight for _, weight in accelerators)
    devices: dict[str, torch.device] = {}
    done, turn, limit = 0, 0, accelerators[0][1] / weights
    for path, size in units:
        # A unit goes to the device of its midpoint.
        while turn + 1 < len(accelerators) and total and (done + size / 2) / total > limit:
            turn += 1
            limit += accelerators[turn][1] / weights
        devices[path] = accelerators[turn][0]
        done += size
    return devices


def _units(module: nn.Module, path: str) -> list[tuple[str, int]]:
    """Return the smallest units placed together, with their bytes: layers of a list, and modules without a list inside."""
    own = [(f"{path}.{name}".lstrip("."), _bytes([tensor])) for name, tensor in _own_tensors(module)]
    if not _is_divisible(module):
        return [(path, _bytes([tensor for _, tensor in _tensors(module)]))]
    units = own
    for name, child in module.named_children():
        child_path = f"{path}.{name}".lstrip(".")
        if isinstance(module, nn.ModuleList):
            units.append((child_path, _bytes([tensor for _, tensor in _tensors(child)])))
        else:
            units += _units(child, child_path)
    return units


def _is_divisible(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) for inner in module.modules())


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = list(module.named_parameters(recurse=False))
    return [*parameters, *module.named_buffers(recurse=False)]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def join(model: nn.Module, where: Placement) -> None:
    """Connect the parts of a model on several devices by hooks; a model on one device is unchanged.

    A part is a layer of a ModuleList or a module without such a list inside, or smaller where those are split: what larger
    modules do with their children need not happen in their forward(). A pre-forward hook moves a part's arguments to its
    device, including tensors inside tuples, lists, dicts and frozen dataclasses (others may be written to, and keep their
    identity). A forward hook moves the result back to the device of the model's first parameter, on which everything
    between the parts runs.
    """
    if len(set(where.devices.values())) > 1:
        first = next(name for name, _ in _tensors(model))
        _join(model, "", where, where.of(first))


def _join(module: nn.Module, path: str, where: Placement, home: torch.device) -> None:
    devices = {where.of(f"{path}.{name}".lstrip(".")) for name, _ in _tensors(module)}
    if len(devices) == 1 and not _is_divisible(module):
        module.register_forward_pre_hook(_bring(devices.pop()), with_kwargs=True)
        module.register_forward_hook(lambda module, args, result: moved(result, home))
        return
    for name, child in module.named_children():
        _join(child, f"{path}.{name}".lstrip("."), where, home)


def _bring(device: torch.device) -> Callable[[nn.Module, Any, Any], tuple[Any, Any]]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return moved(args, device), moved(kwargs, device)

    return hook


def _transfer(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def moved(value: Any, device: torch.device) -> Any:
    """Return `value` with every tensor in it on `device`, unchanged if already there."""
    if isinstance(value, Tensor):
        return _transfer(value, device)
    if isinstance(value, (tuple, list)):
        items = [moved(item, device) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if _is_frozen(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        changed = {name: moved(getattr(value, name), device) for name in fields}
        if any(changed[name] is not getattr(value, name) for name in fields):
            return dataclasses.replace(value, **changed)
    return value


def _is_frozen(value: Any) -> bool:
    params = getattr(value, "__dataclass_params__", None)
    return params is not None and not isinstance(value, type) and params.frozen


def infer_device() -> str:
    """ "cuda" or "xpu" if available, else "cpu"; transformers' function of that name."""
    for name in ("cuda", "xpu"):
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available():
            return name
    return "cpu"
