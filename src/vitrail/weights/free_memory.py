"""How much memory a device has free, as its system tells it. Allocates nothing and refuses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_MEMINFO = "proc/meminfo"
_OWN_GROUPS = "proc/self/cgroup"
# Where the two versions of control groups are mounted, and their files: limit, use, and the page cache, which the
# system gives back when asked for memory.
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None where nobody tells (mps, xpu, systems without /proc).

    The CPU's are what Linux can give without swapping (MemAvailable), or less where a control group (a container, a
    service, a batch job) leaves less. A CUDA device's are what the driver has free and what PyTorch keeps unused.
    """
    if device.type == "cpu":
        return host_memory()
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return None


def host_memory(root: Path = Path("/")) -> int | None:
    """Free bytes of the CPU's memory, read from the files under `root`; None where they tell nothing."""
    available = _fields(root / _MEMINFO).get("MemAvailable:")
    known = [] if available is None else [available * 1024]
    known += _group_rooms(root)
    return max(min(known), 0) if known else None


def _group_rooms(root: Path) -> Iterator[int]:
    """What every control group that this process is in, and every group around it, leaves."""
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
            yield from _room(group, *form[1:])
            if group == mount:
                break


def _room(group: Path, limit: str, use: str, cached: tuple[str, ...]) -> Iterator[int]:
    most, used = _text(group / limit).strip(), _text(group / use).strip()
    if most.isdecimal() and used.isdecimal():  # "max" and a missing file limit nothing
        stat = _fields(group / "memory.stat")
        yield int(most) - int(used) + sum(stat.get(name, 0) for name in cached)


def _fields(file: Path) -> dict[str, int]:
    """The first number of every line by the word before it."""
    words = (line.split() for line in _text(file).splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _text(file: Path) -> str:
    try:
        with file.open(encoding="ascii", errors="replace") as stream:
            return stream.read(1 << 20)
    except OSError:  # another system, or a group that is not to be seen from here
        return ""
