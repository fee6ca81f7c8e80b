"""Vitrail's own formats q4 and q8: quantiser and tensors in files. Codes are computed in ops/reference/encode.py.

q4 takes 4.5 bits per weight with groups of 32: sixteen levels per matrix, fitted to it, and one bfloat16 scale per
group. q8 takes 8.5 bits. Files store the panels of memory, whatever the machine: `<module>.weight.codes`,
`.weight.scales` and, for q4, `.weight.levels`. A codes tensor is a multiple of 64 bytes long, so with all codes first in
a file whose data section is aligned to 64, each is aligned and can be used in place in the mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError
from vitrail.files.safetensors_writer import Spec
from vitrail.ops import packing_layout
from vitrail.ops.encoding import encode_fit, encode_own, row_blocks
from vitrail.ops.weight import Layout, PackedWeight, dequantize
from vitrail.quant.formats.base import StoredWeight, WeightFormat
from vitrail.quant.quantize_config import FORMATS, GROUPS, METHOD, QuantizeConfig

ALIGNMENT = 64  # bytes: alignment of the data section and of every codes tensor
PART_ALIGNMENT = 16  # bytes: alignment of scales, levels and large plain tensors
KEYS = ("weight.codes", "weight.scales", "weight.levels")
_WORK = 30_000_000  # bytes: intermediates of one chunk, and of fitting levels
_LEVELS = 16
_TOP = 63  # largest level, so that sums of products fit the 16-bit lanes of kernels
_SAMPLE = 1 << 18  # number of elements that the levels are fitted to
_ROUNDS = 12  # iterations of fitting; more changes the third digit of the error
# Levels fitted to normally distributed values: initial levels, and those of an all-zero matrix.
_START = (-63, -46, -35, -27, -20, -14, -8, -2, 3, 9, 14, 20, 27, 34, 44, 56)


@dataclass(frozen=True)
class VitrailFormat(WeightFormat):
    """q4 or q8: the panels of its layout, as in memory."""

    name: str
    layout: Layout
    code_type: torch.dtype

    method = METHOD
    keys = KEYS
    tables = True
    follows_dtype = True
    quantizes = True
    alignment = ALIGNMENT

    def recognize(self, parts: Mapping[str, Tensor]) -> WeightFormat | None:
        """Recognise the dtype of the codes; unknown ones are rejected in `from_state` of q4."""
        if not any(key in KEYS for key in parts):
            return None
        is_q8 = "weight.codes" in parts and parts["weight.codes"].dtype == Q8.code_type
        return Q8 if is_q8 else Q4

    def group(self, columns: int, wanted: int) -> int | None:
        """Return the largest allowed group of at most `wanted` that divides a row, or None."""
        return fitting_group(columns, wanted)

    def specs(
        self, shape: tuple[int, int], group: int, dtype: torch.dtype = torch.float32
    ) -> dict[str, Spec]:
        """Return key → dtype and shape of a matrix (out, in) in a file; `dtype` is not stored."""
        rows, columns = shape
        count = packing_layout.panel_count(rows)
        steps = columns // (4 if self.layout == Layout.PANELS8 else 8)
        found: dict[str, Spec] = {
            "weight.codes": (self.code_type, (count, steps, ALIGNMENT)),
            "weight.scales": (torch.bfloat16, (count, columns // group, packing_layout.ROWS)),
        }
        if self.layout == Layout.PANELS4:
            found["weight.levels"] = (torch.int8, (_LEVELS,))
        return found

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        """Build the matrix without copying; the group follows from the number of scales.

        Raises:
            CheckpointError: a tensor is missing, of another dtype or shape, or out of range.
        """
        if "weight.codes" not in parts:
            raise CheckpointError(f"{name}.weight.codes is missing beside {', '.join(parts)}.")
        codes = parts["weight.codes"].dtype
        if codes not in (Q4.code_type, Q8.code_type):
            raise CheckpointError(
                f"{name}.weight.codes is {codes}, which is no format of Vitrail's; int8 (q8) or uint8 (q4) was expected."
            )
        group = _group(name, parts, shape[1], GROUPS if group is None else (group,))
        wanted = self.specs(shape, group)
        for key, (type_, form) in wanted.items():
            if key not in parts:
                raise CheckpointError(f"{name}.{key} is missing beside the codes of {self.name}.")
            found = parts[key]
            if found.dtype != type_ or tuple(found.shape) != form:
                raise CheckpointError(
                    f"{name}.{key} is {found.dtype} {tuple(found.shape)} in the files; a matrix of {shape} in {self.name} "
                    f"has {type_} {form}"
                )
        more = sorted(f"{name}.{key}" for key in parts if key not in wanted)
        if more:
            raise CheckpointError(f"{', '.join(more)} beside the codes of {self.name} is unexpected.")
        if self.layout == Layout.PANELS4:
            _check_levels(name, parts["weight.levels"])
        tensors = {key.removeprefix("weight."): parts[key] for key in wanted}
        return PackedWeight(self.layout, shape, group, tensors, dtype)

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        """Return the tensors unchanged."""
        return {f"weight.{part}": weight.tensors[part] for part in self.layout.parts}

    def quantize(
        self, weight: Tensor, group: int, *, name: str, dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        """Quantise the values without rounding to `dtype` first; see `quantize_own`."""
        packed = quantize_own(weight, self.name, group, name=name, dtype=dtype)
        return packed.with_tensors({part: tensor.to(device) for part, tensor in packed.tensors.items()})

    def can_be_mapped(self, weight: PackedWeight) -> bool:
        """Return whether the tensors are aligned for kernels, which files from other writers may lack."""
        wanted = {part: ALIGNMENT if part == "codes" else PART_ALIGNMENT for part in weight.tensors}
        return all(weight.tensors[part].data_ptr() % bytes_ == 0 for part, bytes_ in wanted.items())

    def working_bytes(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> int:
        """Return bytes of one chunk's intermediates; the matrix is not copied."""
        return min(_WORK, math.prod(shape) * 100)

    def file_order(self, tensors: Mapping[str, Spec]) -> list[str]:
        """Return codes, then scales, then the rest, each at the alignment of its dtype."""

        def rank(name: str) -> tuple[int, bool, int, str]:
            dtype, shape = tensors[name]
            part = 0 if name.endswith(".weight.codes") else 1 if name.endswith(".weight.scales") else 2
            odd = math.prod(shape) * dtype.itemsize % ALIGNMENT != 0
            return part, odd, -dtype.itemsize, name

        return sorted(tensors, key=rank)

    def configs(self) -> dict[str, QuantizeConfig]:
        """Return the defaults with this format."""
        return {self.name: QuantizeConfig(self.name)}

    def implied_config(self, weights: Mapping[str, StoredWeight]) -> QuantizeConfig:
        """Return the configuration, part by part, from the first module of each."""
        parts = {
            "embeddings": "embed_tokens",
            "lm_head": "lm_head",
            "vision": "vision_tower",
            "format": ".mlp.",
        }
        found = {
            part: next((stored.format.name for path, stored in weights.items() if mark in path), "bf16")
            for part, mark in parts.items()
        }
        if found["format"] not in FORMATS:
            found["format"] = self.name
        return QuantizeConfig(**found, group=max(stored.weight.group for stored in weights.values()))


Q4 = VitrailFormat("q4", Layout.PANELS4, torch.uint8)
Q8 = VitrailFormat("q8", Layout.PANELS8, torch.int8)
_LAYOUTS = {"q4": Layout.PANELS4, "q8": Layout.PANELS8, "bf16": Layout.PANELS16}


def fitting_group(columns: int, wanted: int) -> int | None:
    """Return the largest allowed group of at most `wanted` that divides a row of `columns` weights, or None."""
    return max((group for group in GROUPS if group <= wanted and columns % group == 0), default=None)


def quantize_own(
    weight: Tensor, kind: str, group: int = 32, *, name: str = "the matrix", dtype: torch.dtype | None = None
) -> PackedWeight:
    """Quantise a float matrix (out, in) to "q4", "q8" or, in memory only, "bf16"; deterministic.

    Args:
        weight: (out, in).
        kind: "q4", "q8" or "bf16".
        group: adjacent columns that share a scale: 32, 64 or 128, a divisor of `in`.
        name: of the matrix, for messages.
        dtype: of decoded values; None: the matrix's.

    Raises:
        ConfigError: unknown kind, or a group that does not fit.
        CheckpointError: a non-finite value.
    """
    _check(weight, kind, group, name)
    matrix, dtype, layout = weight.detach(), dtype or weight.dtype, _LAYOUTS[kind]
    shape = (matrix.shape[0], matrix.shape[1])
    if layout == Layout.PANELS16:
        codes = packing_layout.pack_pairs(matrix.to(torch.bfloat16))
        return PackedWeight(layout, shape, 1, {"codes": codes}, dtype)
    levels = _fit_levels(matrix, group).to(matrix.device) if layout == Layout.PANELS4 else None
    codes, scales = encode_own(matrix, layout.value, levels, group)
    if not scales.isfinite().all():
        raise CheckpointError(f"{name} holds a value that is not finite; it cannot be stored as {kind}.")
    tensors = {"codes": codes, "scales": scales}
    if levels is not None:
        tensors["levels"] = levels
    return PackedWeight(layout, shape, group, tensors, dtype)


def relative_error(weight: Tensor, packed: PackedWeight) -> float:
    """Return ‖decoded − weight‖ / ‖weight‖ (Frobenius) without rounding to the weight's dtype; 0 for zeros."""
    exact = packed.with_tensors(packed.tensors, torch.float32)
    error = norm = 0.0
    for first, last, rows in row_blocks(weight.detach()):
        stop = min(last * packing_layout.ROWS, packed.shape[0])
        decoded = dequantize(exact, torch.float32, slice(first * packing_layout.ROWS, stop))
        values = rows.double()
        error += float((decoded.double() - values).square().sum())
        norm += float(values.square().sum())
    return float((error / norm) ** 0.5) if norm else 0.0


def _check(weight: Tensor, kind: str, group: int, name: str) -> None:
    if kind not in _LAYOUTS:
        raise ConfigError(f"{name} cannot be stored as {kind!r}; the formats are {', '.join(_LAYOUTS)}.")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ConfigError(
            f"{name} must be a matrix of floats to be stored as {kind}, got {weight.dtype} {tuple(weight.shape)}."
        )
    if kind == "bf16":
        return
    if group not in GROUPS:
        raise ConfigError(f"{name}: groups of {group} columns are not supported, only 32, 64 and 128.")
    if weight.shape[1] % group:
        raise ConfigError(
            f"{name} has {weight.shape[1]} columns, which groups of {group} do not divide; as {kind} it needs a "
            f"multiple of {group}. Keep it in bf16."
        )


def _fit_levels(matrix: Tensor, group: int) -> Tensor:
    """Return int8 (16,), the levels with the least squared error on a sample of the matrix's groups.

    Lloyd's method (Least squares quantization in PCM, 1982) alternates between scales and codes for the levels and levels
    for these. A level is weighted with its group's squared scale: the error of the matrix itself.
    """
    sample = _sample(matrix, group)
    extreme = sample.gather(1, sample.abs().argmax(1, keepdim=True))
    largest = extreme.abs().amax() if sample.numel() else extreme.new_zeros(())
    levels = torch.tensor(_START, dtype=torch.float32)
    if not largest.isfinite() or largest == 0:
        return levels.to(torch.int8)
    ratio = sample / torch.where(extreme == 0, 1.0, extreme)
    weights = extreme[:, 0] / largest  # a common factor does not change the levels and keeps squares in range
    for _ in range(_ROUNDS):
        along, square = encode_fit(ratio, weights, levels)
        means = torch.where(square > 0, along / square.clamp(min=1e-300), levels.double())
        means = means.sort().values
        levels = (means * (_TOP / means.abs().amax())).float()
    return levels.round().to(torch.int8)


def _sample(matrix: Tensor, group: int) -> Tensor:
    """Return float32 (n, group) on the CPU: groups spread over the matrix by the golden ratio, all of a small one."""
    groups = matrix.reshape(-1, group)
    count = min(groups.shape[0], _SAMPLE // group)
    if count < groups.shape[0]:
        places = torch.arange(count, dtype=torch.float64) * 0.6180339887498949
        groups = groups[((places - places.floor()) * groups.shape[0]).long().to(groups.device)]
    return groups.float().cpu()


def _group(name: str, parts: Mapping[str, Tensor], columns: int, allowed: tuple[int, ...]) -> int:
    if "weight.scales" not in parts:
        raise CheckpointError(f"{name}.weight.scales is missing beside the codes.")
    scales = parts["weight.scales"]
    count = scales.shape[1] if scales.dim() == 3 else 0
    group = columns // count if count else 0
    if group not in allowed or group * count != columns:
        raise CheckpointError(
            f"{name}.weight.scales has the shape {tuple(scales.shape)}: rows of {columns} weights in groups of "
            f"{' or '.join(map(str, allowed))} have another number of scales"
        )
    return group


def _check_levels(name: str, levels: Tensor) -> None:
    wide = levels.short()
    if int(wide.abs().max()) > _TOP or bool((wide.diff() < 0).any()):
        raise CheckpointError(
            f"{name}.weight.levels must ascend from -{_TOP} at least to {_TOP} at most, but are "
            f"{levels.tolist()}"
        )
