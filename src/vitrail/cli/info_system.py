"""SystemInfo, `vitrail info --system`: this machine and its kernels. Models: describe.py."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from vitrail._version import __version__
from vitrail.bench.machine import cpu_name
from vitrail.cli.console import PlainConsole
from vitrail.cli.info_printer import WIDTH
from vitrail.cli.output import printable
from vitrail.files.formatting import in_words
from vitrail.ops import memory
from vitrail.ops.cpu import library
from vitrail.weights.free_memory import host_memory


@dataclass(frozen=True)
class SystemInfo:
    """One machine.

    Attributes:
        cpu: the processor's name, as reported by the system.
        cores, usable_cores: of the machine; usable by this process.
        memory: bytes: {"total": …, "free": …}, None where unknown.
        pages: of memory.Pages: memory pages of weights.
        threads: of PyTorch and of the kernels.
        kernels: of library.Status: used, reason, compiler, others.
    """

    vitrail: str
    python: str
    torch: str
    platform: str
    cpu: str
    cores: int
    usable_cores: int
    memory: dict[str, int | None]
    pages: dict[str, Any]
    threads: int
    kernels: dict[str, Any]


def gather() -> SystemInfo:
    """Describe this machine. Raises ConfigError for an unusable VITRAIL_KERNELS."""
    status = library.status()
    cores = os.cpu_count() or 1
    return SystemInfo(
        vitrail=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        cpu=cpu_name(),
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        memory={"total": _total_memory(), "free": host_memory()},
        pages=asdict(memory.pages()),
        threads=status.threads,
        kernels={name: value for name, value in asdict(status).items() if name != "threads"},
    )


def show(info: SystemInfo) -> None:
    """Print a SystemInfo."""
    console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _lines(info):
        table.add_row(name, printable(value))
    console.print(table)


def _lines(info: SystemInfo) -> list[tuple[str, str]]:
    total, free = info.memory["total"], info.memory["free"]
    cores = f"{info.cores}" if info.cores == info.usable_cores else f"{info.usable_cores} of {info.cores}"
    memory = "unknown" if total is None else in_words(total)
    kernels = info.kernels
    lines = [
        ("vitrail", f"{info.vitrail}, Python {info.python}, {info.platform}"),
        ("processor", info.cpu),
        ("cores", cores),
        ("memory", memory if free is None else f"{memory}, {in_words(free)} free"),
        ("pages", _pages(info.pages)),
        ("torch", f"{info.torch}, {info.threads} thread{'' if info.threads == 1 else 's'}"),
        ("kernels", kernels["used"] or f"none, PyTorch does the work: {kernels['reason']}"),
    ]
    if kernels["compiler"]:
        lines.append(("built by", kernels["compiler"]))
    for number, (isa, reason) in enumerate(kernels["others"].items()):
        lines.append(
            ("" if number else "others", f"{isa}: {reason or f'there too ({library.ENVIRONMENT}={isa})'}")
        )
    return lines


def _pages(found: dict[str, Any]) -> str:
    size = found["size"] >> 10
    shown = f"{size >> 10} MiB" if size >= 1024 else f"{size} KiB"
    return f"{shown}{' where weights lie' if found['large'] else ''} ({found['reason']})"


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return None
