"""A decoder's blocks as one call of the kernels: the bits of the modules, and only where nothing is passed over."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from vitrail.bench.random_model import random_model
from vitrail.errors import InputError
from vitrail.kv.cache import KVCache
from vitrail.model.fused import MOST_ROWS, FusedBlocks
from vitrail.model.record import Record
from vitrail.ops.cpu import library
from vitrail.ops.segments import Segments
from vitrail.ops.step import Step

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")

PARAMS = {
    "dim": 96, "n_layers": 2, "head_dim": 16, "hidden_dim": 160, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 64,
    "rope_theta": 1e6, "norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip


@lru_cache(maxsize=4)
def packed(format: str) -> Any:
    return random_model(PARAMS, format)


def fresh(format: str = "q4") -> Any:
    """A model that a test may change."""
    return copy.deepcopy(packed(format))


class Decoding:
    """Sequences of the given numbers of cached positions, and one step of `new` rows for each."""

    def __init__(self, model: Any, past: tuple[int, ...] = (5, 40), new: int = 1, dtype: Any = None) -> None:
        self.model, self.past, self.new = model, past, new
        self.dtype = model.dtype if dtype is None else dtype
        self.calls: list[bool] = []

    def __call__(self, record: Record | None = None) -> tuple[Tensor, list[Tensor]]:
        """The decoder's rows (L, D), and everything that the cache holds."""
        config = self.model.text_config
        cache = KVCache.sized(config, [n + self.new for n in self.past], dtype=self.dtype)
        sequences = tuple(cache.open(room=n + self.new) for n in self.past)
        generator = torch.Generator().manual_seed(1)
        for stored in cache._layers:
            for part in stored.parts():
                part.copy_(torch.randn(part.shape, generator=generator).mul(2))
        for sequence, length in zip(sequences, self.past, strict=True):
            cache.reserve(sequence, length + self.new)
        positions = torch.cat([torch.arange(n, n + self.new) for n in self.past])
        step = Step(positions, Segments.new([self.new] * len(self.past), self.past), sequences)
        hidden = self.model.embed(positions % 50 + 3)
        rows = self.model.decoder.run(hidden, step, cache, Record() if record is None else record)
        return rows, [part for stored in cache._layers for part in stored.parts()]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each step's blocks were one call."""
    seen: list[bool] = []
    run = FusedBlocks.run

    def watched(self: FusedBlocks, *arguments: Any) -> Tensor | None:
        found = run(self, *arguments)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(FusedBlocks, "run", watched)
    return seen


@pytest.fixture
def by_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[Decoding], tuple[Tensor, list[Tensor]]]:
    """Runs a step module by module."""

    def run(decoding: Decoding) -> tuple[Tensor, list[Tensor]]:
        with monkeypatch.context() as patch:
            patch.setattr(FusedBlocks, "run", lambda *_: None)
            return decoding()

    return run


def assert_same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    assert bool(found[0].isfinite().all())
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert torch.equal(ours, theirs)


# --- the same bits --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("isa", library.available())
@pytest.mark.parametrize("format", ["q4", "q8", "nf4", "bf16"])
def test_one_call_gives_the_bits_of_the_modules(
    format: str, isa: str, used: list[bool], by_modules: Callable[[Decoding], Any]
) -> None:
    model = packed(format)
    with library.using(isa):
        for decoding in (
            Decoding(model),
            Decoding(model, past=(33,), dtype=torch.int8),
            Decoding(model, past=(0, 7, 64), new=5),
        ):
            assert_same(decoding(), by_modules(decoding))
    assert used == [True] * 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plain_weights_temperature_and_yarn(
    dtype: torch.dtype, used: list[bool], by_modules: Callable[[Decoding], Any]
) -> None:
    model = tiny.model("ministral3").to(dtype)
    original = model.text_config.rope_scaling["original_max_position_embeddings"]
    decoding = Decoding(model, past=(3, original + 9))  # the second one's queries have another temperature
    assert_same(decoding(), by_modules(decoding))
    assert used == [True]


@torch.no_grad()
def test_a_window(used: list[bool], by_modules: Callable[[Decoding], Any]) -> None:
    model = fresh()
    whole = Decoding(model)()
    for layer in model.decoder.layers:
        layer.self_attn.window = 9
    decoding = Decoding(model)
    found = decoding()
    assert_same(found, by_modules(decoding))
    assert not torch.equal(found[0], whole[0])
    assert used == [True, True]


@torch.no_grad()
def test_the_callers_rows_stay_as_they_are(used: list[bool]) -> None:
    model = packed("q4")
    decoding = Decoding(model)
    given: list[Tensor] = []
    embed = model.embed
    model.embed = lambda ids: given.append(embed(ids)) or given[0]
    try:
        decoding()
    finally:
        del model.embed
    assert used == [True]
    assert torch.equal(given[0], model.embed(torch.tensor([5, 40]) % 50 + 3))


# --- nothing is passed over -------------------------------------------------------------------------------------------


def _hook(model: Any) -> None:
    model.decoder.layers[1].mlp.down_proj.register_forward_hook(lambda module, given, out: out * 2)


def _forward(model: Any) -> None:
    attend = model.decoder.layers[0].self_attn
    forward = attend.forward
    attend.forward = lambda *given: forward(*given) * 2


def _another_norm(model: Any) -> None:
    class Louder(type(model.decoder.layers[0].input_layernorm)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model.decoder.layers[1].input_layernorm.__class__ = Louder


def _another_eps(model: Any) -> None:
    model.decoder.layers[1].post_attention_layernorm.eps = 0.5


def _bias(model: Any) -> None:
    linear = model.decoder.layers[0].mlp.up_proj
    linear.bias = nn.Parameter(torch.ones(linear.out_features, dtype=torch.bfloat16), False)


def _another_activation(model: Any) -> None:
    model.decoder.layers[0].mlp.act_fn = torch.nn.functional.relu


@torch.no_grad()
@pytest.mark.parametrize("change", [_hook, _forward, _another_norm, _another_eps, _bias, _another_activation])
def test_what_was_changed_goes_module_by_module(change: Callable[[Any], None], used: list[bool]) -> None:
    model = fresh()
    before = Decoding(model)()
    change(model)
    after = Decoding(model)()
    assert used == [True, False]
    assert not torch.equal(before[0], after[0])


@torch.no_grad()
def test_replaced_and_moved_weights_are_seen(used: list[bool], by_modules: Callable[[Decoding], Any]) -> None:
    model = fresh()
    first = Decoding(model)()
    layer = model.decoder.layers[0]
    layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj
    swapped = Decoding(model)()
    assert_same(swapped, by_modules(Decoding(model)))
    layer.input_layernorm.weight.data = layer.input_layernorm.weight.data * 2
    scaled = Decoding(model)()
    assert_same(scaled, by_modules(Decoding(model)))
    model.to(torch.float16)
    halves = Decoding(model)()
    assert_same(halves, by_modules(Decoding(model)))
    assert used == [True] * 4
    assert not torch.equal(first[0], swapped[0])
    assert not torch.equal(swapped[0], scaled[0])
    assert halves[0].dtype == torch.float16


@torch.no_grad()
def test_narrowed_weights_are_seen(used: list[bool], by_modules: Callable[[Decoding], Any]) -> None:
    """The same memory, read another way."""
    model = fresh("bf16")
    Decoding(model)()
    for layer in model.decoder.layers:
        mlp = layer.mlp
        mlp.gate_proj.weight.data, mlp.up_proj.weight.data = (
            mlp.gate_proj.weight[:96],
            mlp.up_proj.weight[:96],
        )
        mlp.down_proj.weight.data = mlp.down_proj.weight[:, :96]
    narrowed = Decoding(model)
    assert_same(narrowed(), by_modules(narrowed))


@torch.no_grad()
def test_a_removed_layer_leaves_the_others_their_caches(
    used: list[bool], by_modules: Callable[[Decoding], Any]
) -> None:
    model = fresh()
    del model.decoder.layers[0]  # the cache still has a place for it
    decoding = Decoding(model)
    assert_same(decoding(), by_modules(decoding))
    assert used == [True]


@torch.no_grad()
def test_another_forward_of_a_class_is_called(used: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed("q4")
    before = Decoding(model)()
    mlp = type(model.decoder.layers[0].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: forward(self, x) * 2)
    after = Decoding(model)()
    assert used == [True, False]
    assert not torch.equal(before[0], after[0])


@torch.no_grad()
def test_weights_that_went_elsewhere_are_let_go() -> None:
    model = fresh()
    Decoding(model)()
    codes = weakref.ref(model.decoder.layers[0].mlp.down_proj.packed.tensors["codes"])
    model.to("meta")
    gc.collect()
    assert codes() is None


@torch.no_grad()
def test_a_default_device_is_not_the_models(used: list[bool]) -> None:
    model = packed("q4")
    expected = Decoding(model)()
    decoding = Decoding(model)
    embed = model.embed

    def then_elsewhere(ids: Tensor) -> Tensor:
        torch.set_default_device("meta")
        return embed(ids)

    model.embed = then_elsewhere
    try:
        found = decoding()
    finally:
        torch.set_default_device(None)
        del model.embed
    assert_same(found, expected)
    assert used == [True, False]


@torch.no_grad()
def test_copies_have_programs_of_their_own(used: list[bool]) -> None:
    model = fresh()
    expected = Decoding(model)()
    twin = copy.deepcopy(model)
    model.decoder.layers[0].input_layernorm.weight.zero_()
    assert_same(Decoding(twin)(), expected)
    again = pickle.loads(pickle.dumps(twin.decoder._fused))
    assert again._held is None
    assert used == [True, True]


@torch.no_grad()
def test_threads_that_share_a_model_have_their_own_caches(used: list[bool]) -> None:
    model = packed("q4")
    pasts = [(5, 40), (17,), (64, 3, 9), (33,)]
    expected = [Decoding(model, past)() for past in pasts]

    def repeat(past: tuple[int, ...]) -> list[tuple[Tensor, list[Tensor]]]:
        with torch.no_grad():  # a thread's own
            return [Decoding(model, past)() for _ in range(25)]

    with ThreadPoolExecutor(len(pasts)) as pool:
        for found, wanted in zip(pool.map(repeat, pasts), expected, strict=True):
            for one in found:
                assert_same(one, wanted)
    assert all(used)


@torch.no_grad()
def test_a_hook_for_all_modules_sees_them(used: list[bool]) -> None:
    model, seen = packed("q4"), set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, out: seen.add(type(module).__name__)
    )
    try:
        Decoding(model)()
    finally:
        handle.remove()
    assert {"QuantLinear", "GatedMLP", "MistralAttention"} <= seen
    assert used == [False]


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_who_watches_or_differentiates_sees_modules(used: list[bool]) -> None:
    model = packed("q4")
    Decoding(model)()  # gradients are on
    with torch.no_grad():
        with _Watching():
            Decoding(model)()
        with torch.autocast("cpu"):
            Decoding(model)()
        Decoding(model, past=(4,), new=MOST_ROWS + 1)()
        record = Record(hidden=True)
        Decoding(model)(record)
        assert len(record.hidden_states) == len(model.decoder.layers) + 1
        with library.using("off"):
            Decoding(model)()
    assert used == [False] * 5  # a step that is recorded never asks


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["block", "slot"])
def test_indices_outside_are_refused_before_anything_is_written(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = Decoding(packed("q4"))
    make, caches = KVCache._make_view, []

    def make_wrong(self: KVCache, step: Any) -> Any:
        view = make(self, step)
        (view.block_table if wrong == "block" else view.slots)[-1] = 99
        caches.append([part.clone() for stored in self._layers for part in stored.parts()])
        caches.append([part for stored in self._layers for part in stored.parts()])
        return view

    monkeypatch.setattr(KVCache, "_make_view", make_wrong)
    with pytest.raises(InputError, match="do not fit its tensors"):
        decoding()
    before, after = caches
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
