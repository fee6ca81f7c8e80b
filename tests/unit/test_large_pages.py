"""ops/memory.py: large tensors in large pages, the ways back to small ones, and which weights get them."""

from __future__ import annotations

import copy
import io
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.files.safetensors import SafetensorsFile, header_bytes, write_safetensors
from vitrail.ops import memory
from vitrail.quant.replace import Quantized

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what it did")
offered = pytest.mark.skipif(not memory.pages().large, reason=f"no large pages here: {memory.pages().reason}")


def _anonymous() -> int:
    return _status("RssAnon")


def _status(word: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def _mapping_at(address: int) -> dict[str, str]:
    """What smaps says of the mapping that holds an address."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            first, last = (int(number, 16) for number in head.split("-"))
            inside = first <= address < last
        elif inside:
            found[head.rstrip(":")] = rest.strip()
    return found


@offered
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bfloat16, torch.float32, torch.bool])
def test_a_large_tensor_begins_with_a_large_page_and_is_like_any_other(dtype: torch.dtype) -> None:
    made = memory.empty((3, 2 * MIB + 5), dtype)
    assert made.shape == (3, 2 * MIB + 5) and made.dtype == dtype and made.is_contiguous()
    assert made.data_ptr() % memory.pages().size == 0
    assert made.untyped_storage().nbytes() == made.nbytes  # a copy or a file of it takes no more
    made.fill_(1)
    assert made.sum(dtype=torch.int64) == made.numel()


@offered
def test_it_is_copied_saved_and_shared(tmp_path: Path) -> None:
    made = memory.empty((1024, 2048), torch.float32)
    torch.arange(made.numel(), out=made.view(-1))
    twin = copy.deepcopy(torch.nn.Parameter(made))
    assert torch.equal(twin, made) and twin.data_ptr() != made.data_ptr()
    stream = io.BytesIO()
    torch.save(made, stream)
    assert stream.tell() < made.nbytes + 4096
    write_safetensors(tmp_path / "x", {"a": made})
    assert torch.equal(SafetensorsFile(tmp_path / "x").tensor("a"), made)
    made.share_memory_()  # type: ignore[no-untyped-call]
    assert torch.equal(made, twin)
    assert torch.equal(torch.ones(1, 2048) @ made.T, torch.ones(1, 2048) @ twin.T)


@linux
@offered
def test_it_takes_its_size_and_gives_it_back() -> None:
    torch.ones(64 * MIB, dtype=torch.uint8).sum()  # what PyTorch keeps for itself from the first time on
    before, threads = _anonymous(), _status("VmSize")
    made = [memory.empty((5 * MIB + 300_000,), torch.uint8).fill_(7) for _ in range(8)]
    taken = _anonymous() - before
    size = sum(one.nbytes for one in made)
    assert size - MIB < taken < size + MIB
    part = made[0][10:20]
    made.clear()
    assert _anonymous() - before < 8 * MIB  # a view keeps one of the eight
    assert part.tolist() == [7] * 10
    del part
    assert _anonymous() - before < MIB and _status("VmSize") - threads < 8 * MIB


@linux
@offered
def test_linux_gives_large_pages() -> None:
    made = memory.empty((16 * MIB,), torch.uint8).fill_(1)
    found = _mapping_at(made.data_ptr())
    assert "hg" in found["VmFlags"].split()
    # A system without a free stretch of 2 MiB may give small ones, but not for all eight.
    assert int(found["AnonHugePages"].split()[0]) * 1024 >= memory.pages().size


def test_small_tensors_and_other_devices_have_no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_mapped", lambda *_: pytest.fail("a mapping was asked for"))
    assert memory.empty((), torch.float32).shape == ()
    assert memory.empty((0, 4), torch.int8).shape == (0, 4)
    assert memory.empty((memory.LEAST - 1,), torch.int8).numel() == memory.LEAST - 1
    assert memory.empty((memory.LEAST,), torch.float32, "meta").device.type == "meta"


@pytest.mark.parametrize("case", ["asked for small", "no such advice", "no room", "refused advice", "never"])
def test_without_large_pages_it_is_an_ordinary_tensor(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    class Refusing(mmap.mmap):
        madvise = fail

    if case == "asked for small":
        monkeypatch.setenv(memory.ENVIRONMENT, "Small")
    elif case == "no such advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    elif case == "no room":
        monkeypatch.setattr(mmap, "mmap", fail)
    elif case == "refused advice":
        monkeypatch.setattr(mmap, "mmap", Refusing)
    else:
        monkeypatch.setattr(memory, "_SETTINGS", str(tmp_path).lstrip("/"))
    made = memory.copied(torch.arange(8 * MIB, dtype=torch.int32))
    assert made[-1] == 8 * MIB - 1 and made.sum(dtype=torch.int64) == (8 * MIB - 1) * 4 * MIB
    if case in ("asked for small", "no such advice", "never"):
        assert memory.pages().size == mmap.PAGESIZE and not memory.pages().large and memory.pages().reason


@pytest.mark.parametrize(
    ("general", "own", "large", "reason"),
    [
        ("always [madvise] never", None, True, "transparent_hugepage: madvise"),
        ("[always] madvise never", "always [inherit] madvise never", True, "transparent_hugepage: always"),
        ("always madvise [never]", "always inherit [madvise] never", True, "transparent_hugepage: madvise"),
        ("[always] madvise never", "always inherit madvise [never]", False, "transparent_hugepage: never"),
        ("always madvise [never]", None, False, "transparent_hugepage: never"),
        (None, None, False, "the kernel is built without transparent_hugepage"),
    ],
)
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system that has no such setting")
def test_what_the_system_allows(
    general: str | None, own: str | None, large: bool, reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    (folder / "hugepages-2048kB").mkdir(parents=True)
    if general is not None:
        (folder / "hpage_pmd_size").write_text("2097152\n")
        (folder / "enabled").write_text(general + "\n")
    if own is not None:
        (folder / "hugepages-2048kB/enabled").write_text(own + "\n")
    found = memory.pages(tmp_path)
    assert found == memory.Pages(2 * MIB if large else mmap.PAGESIZE, large, reason)


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.ENVIRONMENT, "huge")
    with pytest.raises(ConfigError, match="VITRAIL_PAGES must be large or small, but is 'huge'"):
        memory.empty((memory.LEAST,), torch.uint8)


def test_copies_and_joined_vectors_hold_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST", 1)
    turned = torch.arange(12.0).view(3, 4).T
    made = memory.copied(turned, dtype=torch.bfloat16)
    assert torch.equal(made, turned.to(torch.bfloat16)) and made.is_contiguous()
    assert memory.copied(made).data_ptr() != made.data_ptr()
    parts = [torch.arange(n, dtype=torch.uint8) for n in (3, 0, 5)]
    assert memory.joined(parts).tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


@offered
@pytest.mark.parametrize("form", ["plain", "nf4", "int8", "q4", "q8"])
def test_loaded_weights_lie_in_large_pages(
    form: str, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "plain": {},
        "nf4": {"quantization_config": vitrail.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
        "int8": {"quantization_config": vitrail.BitsAndBytesConfig(load_in_8bit=True)},
        "q4": {"quantization_config": vitrail.QuantizeConfig("q4")},
        "q8": {"quantization_config": vitrail.QuantizeConfig("q8", vision="bf16")},
    }  # fmt: skip
    load = vitrail.LlavaForConditionalGeneration.from_pretrained
    wanted = load(tiny_llava, dtype=torch.bfloat16, **options[form]).state_dict()
    monkeypatch.setattr(memory, "LEAST", 1)
    monkeypatch.setattr(memory, "_mapped", _small_mapped(memory.pages().size))
    model = load(tiny_llava, dtype=torch.bfloat16, **options[form])
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    packed = [module.packed for module in model.modules() if isinstance(module, Quantized)]
    assert bool(packed) == (form != "plain")
    own = [one.tensors["codes"] for one in packed] + [one.data for one in model.parameters()]
    assert all(tensor.data_ptr() % memory.pages().size == 0 for tensor in own)


def _small_mapped(page: int) -> Any:
    """`memory._mapped` for tensors smaller than a page: where they begin tells whence they are."""

    def mapped(count: int, dtype: torch.dtype) -> torch.Tensor:
        mapping = mmap.mmap(-1, count * dtype.itemsize + page)
        start = -torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr() % page
        return torch.frombuffer(mapping, dtype=dtype, count=count, offset=start)

    return mapped


@linux
@offered
def test_a_mapped_file_asks_for_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "x", {"a": torch.arange(3 * MIB, dtype=torch.int32)})
    for choice, flagged in (("large", True), ("small", False)):
        monkeypatch.setenv(memory.ENVIRONMENT, choice)
        tensor = SafetensorsFile(tmp_path / "x").tensor("a")
        assert ("hg" in _mapping_at(tensor.data_ptr())["VmFlags"].split()) is flagged
        assert tensor[-1] == 3 * MIB - 1
        tensor[MIB] = -1  # reaches neither the file nor another mapping
    assert SafetensorsFile(tmp_path / "x").tensor("a")[MIB] == MIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems promise memory as they like")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE * 4
    start = header_bytes({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    with (tmp_path / "x").open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + size)  # a hole: no block on the disk
    assert SafetensorsFile(tmp_path / "x").tensor("a")[size - 1] == 0
