"""Which machine, instruction set and library a figure belongs to. Measures nothing."""

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
    """What a figure depends on beside the work.

    cpu: the processor's name; cores: logical ones; memory: free bytes, None where nobody tells; torch: its version;
    library: Vitrail's version; instructions: what its kernels use, or None where PyTorch does the work; torch_isa: what
    PyTorch uses; threads: of both; page_bytes: of the pages that large tensors lie in.
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
        """The same for JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """The machine with its present number of threads."""
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
    """The processor's name, as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return next((name for name in (*names, platform.processor(), platform.machine()) if name), "unknown")
