"""bitsandbytes' formats nf4, fp4 and int8: tensors in files, byte for byte as written by bitsandbytes 0.50.2.

The quantisers are in quant/bitsandbytes_codes.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError
from vitrail.files.json import parse_json_object
from vitrail.files.safetensors_writer import Spec
from vitrail.ops.encoding import has_kernels
from vitrail.ops.weight import NESTED_GROUP, Layout, PackedWeight
from vitrail.quant.bitsandbytes_codes import GROUP, INT8_CHUNK, matrix_shape, quantize_4bit, quantize_int8
from vitrail.quant.bitsandbytes_config import BitsAndBytesConfig
from vitrail.quant.formats.base import StoredWeight, WeightFormat

STATE = "quant_state.bitsandbytes__"  # + nf4 or fp4: JSON as a uint8 vector
_GROUPS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Bytes of a chunk's intermediates in ops/reference/encode.encode_map4; the kernel has none.
_CHUNK_WORK = 40_000_000
_SCALES = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")


@dataclass(frozen=True)
class BitsAndBytes4(WeightFormat):
    """nf4 or fp4: codes for a map that the file stores.

    Attributes:
        nested: whether the scales are quantised too.
        storage: dtype in which the bytes of codes are saved.
    """

    name: str
    nested: bool = False
    storage: torch.dtype = torch.uint8

    method = BitsAndBytesConfig.quant_method
    keys = (*_SCALES, f"weight.{STATE}nf4", f"weight.{STATE}fp4")
    stores_dtype = True
    quantizes = True

    def recognize(self, parts: Mapping[str, Tensor]) -> WeightFormat | None:
        """Recognise the name of the quant_state; none or two are rejected in `from_state` of nf4."""
        if not any(key in self.keys for key in parts):
            return None
        state = [key for key in parts if key.startswith(f"weight.{STATE}")]
        name = FP4.name if state == [f"weight.{STATE}{FP4.name}"] else NF4.name
        storage = parts["weight"].dtype if "weight" in parts else torch.uint8
        return BitsAndBytes4(name, "weight.nested_absmax" in parts, storage)

    def specs(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> dict[str, Spec]:
        """Return key → dtype and shape; UnsupportedError with nested scales, whose offset is JSON of variable length."""
        if self.nested:
            raise self._cannot("planned with double quantisation")
        count = math.prod(shape)
        tensors = {
            "codes": torch.empty((count + 1) // 2, dtype=torch.uint8, device="meta"),
            "quant_map": torch.empty(16, device="meta"),
            "absmax": torch.empty(-(-count // group), device="meta"),
        }
        state = self.to_state(PackedWeight(Layout.MAP4, shape, group, tensors, dtype))
        return {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()}

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        """Build the matrix; shape, group and dtype are the file's."""
        return _map4_from_state(name, parts)

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        """Return the tensors with a JSON text of their sizes; ConfigError if `storage` does not divide the bytes."""
        tensors, codes = weight.tensors, weight.tensors["codes"]
        if codes.numel() % self.storage.itemsize:
            raise ConfigError(
                f"a weight of {codes.numel()} packed bytes cannot be stored as {self.storage}; "
                "choose bnb_4bit_quant_storage='uint8'."
            )
        state: dict[str, Any] = {
            "quant_type": self.name,
            "blocksize": weight.group,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "shape": list(weight.shape),
        }
        parts = {
            "weight": codes.view(self.storage)[:, None],
            "weight.absmax": tensors["absmax"],
            "weight.quant_map": tensors["quant_map"],
        }
        if "nested_map" in tensors:
            parts["weight.nested_absmax"] = tensors["nested_absmax"]
            parts["weight.nested_quant_map"] = tensors["nested_map"]
            offset = tensors["nested_offset"].item()
            state |= {"nested_blocksize": NESTED_GROUP, "nested_dtype": "float32", "nested_offset": offset}
        text = json.dumps(state).encode()
        parts[f"weight.{STATE}{self.name}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return parts

    def quantize(
        self, weight: Tensor, group: int, *, name: str, dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        """Quantise after rounding to `dtype`, as bitsandbytes does."""
        copy = weight.to(device=device, dtype=dtype, copy=True)
        return quantize_4bit(copy, self.name, nested=self.nested, group=group)

    def group(self, columns: int, wanted: int) -> int:
        """Return the same group for all: groups run over the flattened matrix."""
        return GROUP

    def packed_bytes(self, shape: tuple[int, int], group: int) -> int:
        """Return bytes of codes, scales and maps; the file's JSON is not kept."""
        count = math.prod(shape)
        groups = -(-count // group)
        codes = (count + 1) // 2 + 16 * 4
        return codes + (groups + 4 * -(-groups // NESTED_GROUP) + 256 * 4 + 4 if self.nested else 4 * groups)

    def working_bytes(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> int:
        """Return bytes of the matrix, a copy of the codes, and intermediates of scales, and of codes without kernels."""
        count = math.prod(shape)
        work = count // 2 if has_kernels() else min(_CHUNK_WORK, count * 40)
        return count * dtype.itemsize + self.packed_bytes(shape, group) + work

    def configs(self) -> dict[str, BitsAndBytesConfig]:
        """Return the variants with plain scales, and nf4 with quantised scales."""
        plain = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=self.name)
        if self.name == FP4.name:
            return {self.name: plain}
        nested = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=self.name, bnb_4bit_use_double_quant=True
        )
        return {self.name: plain, f"{self.name}_double": nested}

    def implied_config(self, weights: Mapping[str, StoredWeight]) -> BitsAndBytesConfig:
        """Return the configuration of the first weight."""
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=self.nested,
            bnb_4bit_quant_storage=self.storage,
        )


@dataclass(frozen=True)
class BitsAndBytes8(WeightFormat):
    """int8: one scale per row, rows in order."""

    name: str = "int8"

    method = BitsAndBytesConfig.quant_method
    keys = ("SCB",)
    quantizes = True

    def group(self, columns: int, wanted: int) -> int:
        """Return the group of the 4-bit formats, for reports; scales are per row."""
        return GROUP

    def specs(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> dict[str, Spec]:
        """Return key → dtype and shape."""
        return {
            "weight": (torch.int8, shape),
            "SCB": (torch.float32, shape[:1]),
            "weight_format": (torch.uint8, ()),
        }

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        """Build the matrix; the shape is the file's, decoded values have `dtype`."""
        return _int8_from_state(name, parts, dtype)

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        """Return the tensors, with the marker of row-major order."""
        row_major = torch.zeros((), dtype=torch.uint8)
        return {"weight": weight.tensors["codes"], "SCB": weight.tensors["scale"], "weight_format": row_major}

    def quantize(
        self, weight: Tensor, group: int, *, name: str, dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        """Quantise after rounding to `dtype`, as bitsandbytes does."""
        return quantize_int8(weight.to(device=device, dtype=dtype, copy=True))

    def packed_bytes(self, shape: tuple[int, int], group: int) -> int:
        """Return bytes of codes and scales."""
        return math.prod(shape) + 4 * shape[0]

    def working_bytes(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> int:
        """Return bytes of the matrix and of one chunk: in float16, its magnitudes, and three times in float32."""
        count = math.prod(shape)
        return count * dtype.itemsize + 16 * min(INT8_CHUNK, count)

    def configs(self) -> dict[str, BitsAndBytesConfig]:
        """Return the only variant."""
        return {self.name: BitsAndBytesConfig(load_in_8bit=True)}

    def implied_config(self, weights: Mapping[str, StoredWeight]) -> BitsAndBytesConfig:
        """Return the only variant."""
        return BitsAndBytesConfig(load_in_8bit=True)


NF4 = BitsAndBytes4("nf4")
FP4 = BitsAndBytes4("fp4")
INT8 = BitsAndBytes8()

# Formats suggested for a model that is too large, the most accurate first, with the Python to request them.
SMALLER = (
    (BitsAndBytesConfig(load_in_8bit=True), "BitsAndBytesConfig(load_in_8bit=True)"),
    (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=NF4.name),
        f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{NF4.name}")',
    ),
)


def format_of(config: BitsAndBytesConfig) -> BitsAndBytes4 | BitsAndBytes8:
    """Return the format of a configuration, with its options."""
    if config.load_in_8bit:
        return INT8
    four = FP4 if config.bnb_4bit_quant_type == FP4.name else NF4
    return replace(four, nested=config.bnb_4bit_use_double_quant, storage=config.bnb_4bit_quant_storage)


def _map4_from_state(name: str, parts: Mapping[str, Tensor]) -> PackedWeight:
    keys = [key for key in parts if key.startswith(f"weight.{STATE}")]
    if len(keys) != 1:
        raise CheckpointError(f"{name} must have one {STATE}nf4 or {STATE}fp4, but has {len(keys)}.")
    kind = keys[0].removeprefix(f"weight.{STATE}")
    state = _parse(name, kind, parts[keys[0]])
    rows, columns = state["shape"]
    count, group = rows * columns, state["blocksize"]
    tensors = {
        "codes": _part(name, parts, "weight", None, None).reshape(-1).view(torch.uint8),
        "quant_map": _part(name, parts, "weight.quant_map", torch.float32, 16),
    }
    if tensors["codes"].numel() != (count + 1) // 2:
        raise CheckpointError(
            f"{name}.weight has {tensors['codes'].numel()} bytes, {count} values need another number."
        )
    groups = math.ceil(count / group)
    if "nested_offset" in state:
        tensors["absmax"] = _part(name, parts, "weight.absmax", torch.uint8, groups)
        outer = math.ceil(groups / NESTED_GROUP)
        tensors["nested_absmax"] = _part(name, parts, "weight.nested_absmax", torch.float32, outer)
        tensors["nested_map"] = _part(name, parts, "weight.nested_quant_map", torch.float32, 256)
        tensors["nested_offset"] = torch.tensor(state["nested_offset"], dtype=torch.float32)
    else:
        tensors["absmax"] = _part(name, parts, "weight.absmax", torch.float32, groups)
    known = {"weight", "weight.quant_map", "weight.absmax", keys[0]}
    if "nested_offset" in state:
        known |= {"weight.nested_absmax", "weight.nested_quant_map"}
    _refuse_more(name, parts, known)
    return PackedWeight(Layout.MAP4, (rows, columns), group, tensors, _DTYPES[state["dtype"]])


def _int8_from_state(name: str, parts: Mapping[str, Tensor], dtype: torch.dtype) -> PackedWeight:
    codes = _part(name, parts, "weight", torch.int8, None)
    if codes.dim() != 2:
        raise CheckpointError(f"{name}.weight must be a matrix of int8, but has shape {tuple(codes.shape)}.")
    if "weight_format" in parts and bool(parts["weight_format"].any()):
        raise CheckpointError(f"{name}.weight_format must be 0 (row-major); other layouts are not supported.")
    _refuse_more(name, parts, {"weight", "weight_format", "SCB"})
    scale = _part(name, parts, "SCB", torch.float32, codes.shape[0])
    return PackedWeight(
        Layout.INT8_ROWS, matrix_shape(codes), codes.shape[1], {"codes": codes, "scale": scale}, dtype
    )


def _refuse_more(name: str, parts: Mapping[str, Tensor], known: set[str]) -> None:
    more = sorted(f"{name}.{key}" for key in parts if key not in known)
    if more:
        raise CheckpointError(f"{', '.join(more)} beside the quantised weight is unexpected.")


def _part(
    name: str, parts: Mapping[str, Tensor], key: str, dtype: torch.dtype | None, count: int | None
) -> Tensor:
    if key not in parts:
        raise CheckpointError(f"{name}.{key} is missing beside the quantised weight.")
    tensor = parts[key]
    wrong_size = count is not None and tuple(tensor.shape) != (count,)
    if wrong_size or (dtype is not None and tensor.dtype != dtype):
        wanted = f"{dtype} ({count},)" if count is not None else str(dtype)
        raise CheckpointError(f"{name}.{key} must be {wanted}, but is {tensor.dtype} {tuple(tensor.shape)}.")
    return tensor.contiguous()


def _parse(name: str, kind: str, text: Tensor) -> dict[str, Any]:
    """Parse the quant_state's JSON, checking every value before it is used."""
    where = f"{name}.weight.{STATE}{kind}"
    if (
        kind not in (NF4.name, FP4.name)
        or text.dtype != torch.uint8
        or text.dim() != 1
        or text.numel() > 65536
    ):
        raise CheckpointError(f"{where} must be a short uint8 vector of a quant_state for nf4 or fp4.")
    state = parse_json_object(bytes(text.tolist()), where)
    shape, offset = state.get("shape"), state.get("nested_offset", 0.0)
    checks = {
        "quant_type": state.get("quant_type") == kind,
        "blocksize": type(state.get("blocksize")) is int and state["blocksize"] in _GROUPS,
        "dtype": state.get("dtype") in tuple(_DTYPES),
        "shape": isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape),
        "nested_blocksize": state.get("nested_blocksize", NESTED_GROUP) == NESTED_GROUP,
        "nested_dtype": state.get("nested_dtype", "float32") == "float32",
        "nested_offset": type(offset) in (int, float) and abs(offset) < 1e38,
    }
    for key, good in checks.items():
        if not good:
            raise CheckpointError(f"{where} has {key} {state.get(key)!r}, which Vitrail cannot read.")
    return state
