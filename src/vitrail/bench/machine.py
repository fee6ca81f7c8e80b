"""Description of the machine, instruction set and library that a measurement belongs to."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail._version import __version__
from vitrail.ops import memory
from vitrail.ops.cpu import library
from vitrail.weights.free_memory import host_memory


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything a measurement depends on besides the workload.

    Attributes:
        cpu: processor name.
        cores: logical cores.
        memory: free bytes, or None if unknown.
        torch: its version.
        library: Vitrail's version.
        instructions: instruction set of the kernels, or None if PyTorch is used.
        torch_isa: PyTorch's instruction set.
        threads: of both.
        page_bytes: page size of large tensors.
    """

    cpu: str
    cores: int
    memory: int | None
    torch: str
    torch_isa: str
    library: str
    instructions: str | None
    threads: int
    page_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """Return the machine with the current number of threads."""
    return Machine(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        memory=host_memory(),
        torch=str(torch.__version__),
        torch_isa=torch.backends.cpu.get_cpu_capability(),
        library=__version__,
        instructions=library.status().used,
        threads=torch.get_num_threads(),
        page_bytes=memory.pages().size,
    )


def cpu_name() -> str:
    """Return the processor's name as reported by the system."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return next((name for name in (*names, platform.processor(), platform.machine()) if name), "unknown")
