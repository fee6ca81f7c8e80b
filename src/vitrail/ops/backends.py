"""Table of attention backends by device type. A new backend is a file of its own and a line here."""

import torch

from vitrail.ops.backend import AttentionBackend
from vitrail.ops.cpu import library
from vitrail.ops.cpu.backend import CPUBackend
from vitrail.ops.reference.backend import ReferenceBackend

REFERENCE = ReferenceBackend()
_CPU = CPUBackend()
# By device type; others use the reference. On the meta device only shapes matter.
BACKENDS: dict[str, AttentionBackend] = {"cpu": _CPU, "meta": _CPU}


def backend_for(device: torch.device) -> AttentionBackend:
    """Return the backend of a device."""
    return BACKENDS.get(device.type, REFERENCE)


def check_backend() -> None:
    """Raise UnsupportedError if VITRAIL_KERNELS names kernels that this machine lacks."""
    library.library()
