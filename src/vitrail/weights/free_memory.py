"""Free memory of a device as reported by the system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_MEMINFO = "proc/meminfo"
_OWN_GROUPS = "proc/self/cgroup"
# Mount points of both versions of control groups, and their files: limit, usage, and the page cache, which is reclaimed
# on demand.
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None if unknown (mps, xpu, systems without /proc).

    For the CPU what Linux can provide without swapping (MemAvailable), or less if a control group (a container, a service, a
    batch job) leaves less. For a CUDA device the driver's free memory plus PyTorch's unused cache.
    """
    if device.type == "cpu":
        return host_memory()
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return None


def host_memory(root: Path = Path("/")) -> int | None:
    """Return the free bytes of host memory, read from the files under `root`; None if unknown."""
    available = _fields(root / _MEMINFO).get("MemAvailable:")
    known = [] if available is None else [available * 1024]
    known += _group_limits(root)
    return max(min(known), 0) if known else None


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the bytes left by every control group of this process and its parents."""
    for line in _text(root / _OWN_GROUPS).splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" and not kinds:
            form = _V2
        elif "memory" in kinds.split(","):
            form = _V1
        else:
            continue
        mount = root / form[0]
        # A container may see its own group as the root of the tree while the path is the host's.
        folder = mount.joinpath(*(part for part in path.split("/") if part not in ("", ".", "..")))
        for group in (folder, *folder.parents):
            yield from _bytes_left(group, *form[1:])
            if group == mount:
                break


def _bytes_left(group: Path, limit: str, use: str, cached: tuple[str, ...]) -> Iterator[int]:
    most, used = _text(group / limit).strip(), _text(group / use).strip()
    if most.isdecimal() and used.isdecimal():  # "max" and missing files are no limit
        stat = _fields(group / "memory.stat")
        yield int(most) - int(used) + sum(stat.get(name, 0) for name in cached)


def _fields(file: Path) -> dict[str, int]:
    """Return the first number of every line by the word before it."""
    words = (line.split() for line in _text(file).splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _text(file: Path) -> str:
    try:
        with file.open(encoding="ascii", errors="replace") as stream:
            return stream.read(1 << 20)
    except OSError:  # another system, or a group that is not visible here
        return ""
