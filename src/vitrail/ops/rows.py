"""Row-wise operators: RMSNorm, SwiGLU gate, rotary embedding. Kernels and definitions: ops/cpu/rows.py."""

from vitrail.ops.cpu.rows import rms_norm, rotate_pair, silu_gate

__all__ = ["rms_norm", "rotate_pair", "silu_gate"]
