"""A step of decoding is ready for a GPU: nothing in it waits for a device, and compilers can take it whole.

What is traced is model.step(model.embed(ids), step, cache). How fast it is on a GPU was never measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitrail
from tests import tiny
from vitrail.kv.cache import KVCache
from vitrail.ops import backends
from vitrail.ops.batch import ForwardBatch, build_batch
from vitrail.quant.replace import QuantLinear

PAST = (5, 40)  # the second one's positions fill more than one block
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero")

Model = Any


def text_model() -> Model:
    """The decoder of a tiny Pixtral as a model of its own."""
    settings = tiny.config("llava").text_config
    return tiny.randomize(vitrail.MistralForCausalLM(settings)).eval()


def packed_model(folder: Path) -> Model:
    """A tiny Mistral Small 3.1 in Vitrail's own 4 bits."""
    tiny.write_checkpoint(folder, "mistral3")
    model = vitrail.Mistral3ForConditionalGeneration.from_pretrained(
        folder, quantization_config=vitrail.QuantizeConfig(format="q4")
    )
    kinds = {module.format.name for module in model.modules() if isinstance(module, QuantLinear)}
    assert kinds == {"q4", "q8"}
    return model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["text", "pixtral", "ministral3", "q4"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "text":
        return text_model()
    if request.param == "q4":
        return packed_model(tmp_path / "checkpoint")
    return tiny.model("llava" if request.param == "pixtral" else "ministral3")


def geometry(model: Model) -> Any:
    return model.text_config


def prefilled(model: Model, dtype: torch.dtype, device: str = "cpu") -> tuple[KVCache, Tensor, ForwardBatch]:
    """A cache with two sequences of PAST positions, and ids and step of the next one of each."""
    cache = KVCache.sized(geometry(model), [64, 64], dtype=dtype, device=device)
    sequences = tuple(cache.open(room=64) for _ in PAST)
    ids = torch.arange(sum(PAST), device=device) % 50 + 10
    batch = build_batch(PAST, cache=cache, sequences=sequences, device=device)
    model.step(model.embed(ids), batch, cache)
    step = build_batch(
        [1] * len(PAST), cache=cache, sequences=sequences, logits_indices=range(len(PAST)), device=device
    )
    return cache, torch.tensor([11, 12], device=device), step


def advance(model: Model) -> Callable[[Tensor, ForwardBatch, KVCache], Tensor]:
    def run(ids: Tensor, step: ForwardBatch, cache: KVCache) -> Tensor:
        logits: Tensor = model.step(model.embed(ids), step, cache)
        return logits

    return run


class Watched(TorchDispatchMode):
    """Fails where an operator reads a number for the host, or has tensors of two devices."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} waits for the device"
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor):
                self.seen += 1
                assert value.device.type == self.device, f"{name} has a tensor on {value.device}"
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float", "8-bit"])
def test_a_step_reads_nothing_on_the_host(model: Model, dtype: torch.dtype) -> None:
    """On the meta device tensors have no values: .item(), .tolist() and .cpu() would raise, and so would a CPU tensor."""
    cache, ids, step = prefilled(model, dtype)
    expected = model.step(model.embed(ids), step, cache)
    model.to("meta")
    cache, ids, step = prefilled(model, dtype, "meta")
    with Watched("meta") as watched:
        logits = model.step(model.embed(ids), step, cache)
    assert watched.seen > 50
    assert logits.is_meta and logits.shape == expected.shape and logits.dtype == expected.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float", "8-bit"])
def test_neither_does_what_other_devices_run(
    model: Model, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention's definition in PyTorch, which a GPU runs, knows every length on the host already."""
    model.to("meta")
    cache, ids, step = prefilled(model, dtype, "meta")
    monkeypatch.setitem(backends.BACKENDS, "meta", backends.REFERENCE)
    with Watched("meta") as watched:
        assert model.step(model.embed(ids), step, cache).is_meta
    assert watched.seen > 50


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float", "8-bit"])
def test_a_step_is_compiled_whole(model: Model, dtype: torch.dtype) -> None:
    """torch.compile(fullgraph=True): no break, the same logits, and the same keys in the cache."""
    cache, ids, step = prefilled(model, dtype)
    expected = advance(model)(ids, step, cache)
    torch._dynamo.reset()
    compiled = torch.compile(advance(model), fullgraph=True, backend="aot_eager")
    other, ids, step = prefilled(model, dtype)
    found = compiled(ids, step, other)
    assert torch.equal(found, expected)
    for left, right in zip(cache, other, strict=True):
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
