"""files/safetensors.py: what a header may say, what it may not, and the bytes that are written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from vitrail.errors import CheckpointError
from vitrail.files import safetensors as module
from vitrail.files.safetensors import SafetensorsFile, write_safetensors

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16,
    torch.float16, torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64,
    torch.int64, torch.uint64,
]  # fmt: skip


def _file(folder: Path, header: Any, data: bytes = b"\0" * 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _tensors() -> dict[str, torch.Tensor]:
    made = {f"t.{str(dtype)[6:]}": torch.arange(6).to(dtype).view(2, 3) for dtype in DTYPES}
    return made | {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.5), "Zö": torch.ones(3)}


def test_every_dtype_is_read_as_the_reference_wrote_it(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    for name, wanted in _tensors().items():
        got = file.tensor(name)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.reshape(-1).view(torch.uint8).tolist() == wanted.reshape(-1).view(torch.uint8).tolist()


def test_written_bytes_equal_the_reference_library(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", _tensors())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert set(load_file(tmp_path / "ours")) == set(_tensors())


def test_views_are_written_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    write_safetensors(tmp_path / "x", {"t": whole.T, "row": whole[1]})
    file = SafetensorsFile(tmp_path / "x")
    assert torch.equal(file.tensor("t"), whole.T)
    assert torch.equal(file.tensor("row"), whole[1])


def test_a_mapped_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD)
    before = path.read_bytes()
    SafetensorsFile(path).tensor("a").fill_(7)
    assert path.read_bytes() == before


def test_writing_never_overwrites(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD)
    with pytest.raises(FileExistsError):
        write_safetensors(path, {"a": torch.ones(1)})


BAD: dict[str, tuple[Any, str]] = {
    "repeated key": (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{}}', "appears twice"),
    "not an object": (b"[]", "does not begin"),
    "not JSON": (b"{nonsense", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8"),
    "deep nesting": (b'{"a":' + b"[" * 200_000, "deep"),
    "unknown dtype": ({"a": {**GOOD["a"], "dtype": "F7"}}, "dtype"),
    "dtype is no text": ({"a": {**GOOD["a"], "dtype": ["F32"]}}, "dtype"),
    "negative size": ({"a": {**GOOD["a"], "shape": [-2, -3]}}, "shape"),
    "size is a truth value": ({"a": {**GOOD["a"], "shape": [True, 6]}}, "shape"),
    "size is a fraction": ({"a": {**GOOD["a"], "shape": [2.0, 3]}}, "shape"),
    "huge sizes": ({"a": {**GOOD["a"], "shape": [2**62, 2**62]}}, "needs"),
    "size beyond 64 bits": ({"a": {**GOOD["a"], "shape": [2**64]}}, "shape"),
    "offsets backwards": ({"a": {**GOOD["a"], "data_offsets": [24, 0]}}, "data_offsets"),
    "three offsets": ({"a": {**GOOD["a"], "data_offsets": [0, 24, 24]}}, "data_offsets"),
    "extra key": ({"a": {**GOOD["a"], "code": "x"}}, "exactly"),
    "missing key": ({"a": {"dtype": "F32", "shape": [6]}}, "exactly"),
    "entry is a list": ({"a": [1]}, "exactly"),
    "metadata of numbers": ({"__metadata__": {"format": 1}, **GOOD}, "__metadata__"),
    "overlap": ({**GOOD, "b": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}}, "overlaps"),
    "gap": ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}}, "gap"),
    "bytes after the last": ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, "end at"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_header_is_refused_by_name(tmp_path: Path, case: str) -> None:
    header, reason = BAD[case]
    path = _file(tmp_path, header)
    with pytest.raises(CheckpointError, match=reason) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_truncation_names_every_tensor_that_is_cut(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.w": torch.ones(100) for i in range(6)}
    write_safetensors(tmp_path / "x", tensors)
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[:-900])
    with pytest.raises(CheckpointError, match=r"3 of its 6 tensors .*: layers\.\{3-5\}\.w"):
        SafetensorsFile(tmp_path / "x")


@pytest.mark.parametrize("length", [0, 3, 8, 30])
def test_a_short_file_is_refused(tmp_path: Path, length: int) -> None:
    path = _file(tmp_path, GOOD)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(100), b"text\n" * 30]
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        SafetensorsFile(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            SafetensorsFile(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=6,
)
FIELD = st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "more"])
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@FUZZ
@given(
    change=st.dictionaries(FIELD, JSON, max_size=3),
    other=st.dictionaries(st.text(max_size=3), JSON, max_size=2),
)
@example(change={"shape": [0], "data_offsets": [0, 0]}, other={})
def test_any_header_either_opens_or_is_refused(
    tmp_path: Path, change: dict[str, Any], other: dict[str, Any]
) -> None:
    path = _file(tmp_path, {"a": {**GOOD["a"], **change}, **other})
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert sum(file.tensor(name).nbytes for name in file) == 24


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), max_size=6), st.integers(0, 160))
def test_any_damaged_byte_either_opens_or_is_refused(
    tmp_path: Path, damage: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(_file(tmp_path, GOOD).read_bytes())
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path / "y.safetensors"
    path.write_bytes(content[: max(0, len(content) - max(0, length - 80))])
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert all(file.tensor(name).nbytes <= 24 for name in file)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_copied_equals_the_mapped_tensor_to_the_bit(
    tmp_path: Path, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 100)
    monkeypatch.setattr(module, "_MOST", 30)
    tensors = {
        "a": torch.randn(7, 11),
        "b": torch.randn(33).bfloat16(),
        "c": torch.tensor(3.5),
        "d": torch.ones(0, 2),
    }
    write_safetensors(tmp_path / "x", tensors)
    file = SafetensorsFile(tmp_path / "x")
    for name, tensor in tensors.items():
        made = file.copied(name, dtype=dtype)
        assert torch.equal(made, tensor.to(dtype or tensor.dtype)), name
        assert made.shape == tensor.shape


def test_file_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    """Neither signal: a copy reads to the end that is left, a mapping is asked for its size first."""
    path = tmp_path / "x"
    write_safetensors(path, {"a": torch.ones(4096), "b": torch.ones(1 << 16)})
    file = SafetensorsFile(path)
    assert file.copied("b").sum() == 1 << 16
    os.truncate(path, 10_000)
    for read in (file.tensor, file.copied):
        with pytest.raises(CheckpointError, match="was cut while in use: 10,000 of its"):
            read("b")
    path.unlink()
    write_safetensors(path, {"a": torch.zeros(2)})  # another file of that name leaves the open one alone
    again = SafetensorsFile(path)
    path.replace(tmp_path / "y")
    assert again.copied("a").tolist() == again.tensor("a").tolist() == [0, 0]


@pytest.mark.parametrize("filling", [b"[],", b"{},"])
def test_header_of_nothing_but_brackets_is_refused_before_it_is_parsed(
    filling: bytes, tmp_path: Path
) -> None:
    header = b'{"a":[' + filling * 2_000_000 + b"1]}"
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"its header holds .* a file has at most 500,000 tensors"):
        SafetensorsFile(tmp_path / "a.safetensors")
    assert time.process_time() - began < 0.5
