"""Layout of Vitrail's own formats: panels of 16 output rows, interleaved in steps of 4 columns.

One layout serves every machine and is the one in files (version 1). `P` panels of 16 rows cover `out` rows; rows beyond
`out` are padding. Byte [p, s, r·4+j] of 8-bit codes is column 4s+j of row 16p+r; of 4-bit codes the
low nibble is column 8s+j, the high one column 8s+4+j. Pairs [p, s, r, j] of bfloat16 are column 2s+j.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitrail.ops import memory

ROWS = 16  # rows per panel


def panel_count(rows: int) -> int:
    """Return the number of panels for `rows` rows."""
    return -(-rows // ROWS)


def _rows16(matrix: Tensor) -> Tensor:
    """Zero-pad (rows, columns) to whole panels: (P, 16, columns)."""
    rows, columns = matrix.shape
    return pad(matrix, (0, 0, 0, -rows % ROWS)).view(-1, ROWS, columns)


def pack8(codes: Tensor) -> Tensor:
    """Pack int8 (rows, columns) to (P, columns/4, 64)."""
    steps = torch.unflatten(_rows16(codes), 2, (-1, 4))
    return steps.transpose(1, 2).flatten(2).contiguous()


def byte_rows(panels: Tensor) -> Tensor:
    """Return the bytes of 8-bit or 4-bit codes (P, steps, 64) row by row, in the order of the steps: (16·P, 4·steps)."""
    fours = panels.view(torch.int32).transpose(1, 2).contiguous()  # four bytes of a row at a time
    return fours.view(panels.dtype).flatten(0, 1)


def pack4(codes: Tensor) -> Tensor:
    """Pack uint8 0 … 15 (rows, columns) to (P, columns/8, 64)."""
    halves = torch.unflatten(_rows16(codes), 2, (-1, 2, 4))
    packed = halves[..., 0, :] | halves[..., 1, :] << 4
    return packed.transpose(1, 2).flatten(2).contiguous()


def paired(columns: Tensor) -> Tensor:
    """Reorder columns (…, n) of 4-bit codes to the order of their bytes: 0, 4, 1, 5, 2, 6, 3, 7 of every eight."""
    return torch.unflatten(columns, -1, (-1, 2, 4)).transpose(-1, -2).flatten(-3)


def unpaired(columns: Tensor) -> Tensor:
    """Invert `paired`."""
    return torch.unflatten(columns, -1, (-1, 4, 2)).transpose(-1, -2).flatten(-3)


def pack_scales(scales: Tensor) -> Tensor:
    """Pack one scale per row and group (rows, groups) to (P, groups, 16)."""
    return _rows16(scales).transpose(1, 2).contiguous()


def unpack_scales(panels: Tensor) -> Tensor:
    """Unpack (P, groups, 16) to (16·P, groups)."""
    return panels.transpose(1, 2).flatten(0, 1)


def pack_pairs(matrix: Tensor) -> Tensor:
    """Pack bfloat16 (rows, columns) to (P, ceil(columns/2), 16, 2)."""
    even = pad(matrix, (0, matrix.shape[1] % 2))
    return memory.copied(torch.unflatten(_rows16(even), 2, (-1, 2)).transpose(1, 2))


def unpack_pairs(panels: Tensor) -> Tensor:
    """Unpack (P, ceil(columns/2), 16, 2) to bfloat16 (16·P, columns, one more if it was odd)."""
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)


def pick_rows(panels: Tensor, rows: Tensor) -> Tensor:
    """Extract single rows of any of these tensors as one-row panels: `rows` (n,) → n panels.

    The result has 1 in place of 16 in the shapes above: [n, s, j] of codes is step s of row n.
    """
    panel, row = rows // ROWS, rows % ROWS
    if panels.dim() == 4:
        return panels[panel, :, row]
    if panels.dtype in (torch.int8, torch.uint8):
        return torch.unflatten(panels, 2, (ROWS, 4))[panel, :, row]
    return panels[panel, :, row]
