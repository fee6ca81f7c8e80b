"""How long `vitrail ask` says an answer will take: the work is counted rightly, the rate is measured shortly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from tests import tiny
from vitrail.cli.main import main
from vitrail.kv.cache import KVCache
from vitrail.model import estimate as module
from vitrail.model.cost import decode_cost, kv_bytes, matrix_size, prefill_cost, vision_cost
from vitrail.model.estimate import Estimate, estimate, measure, work_of


def wide() -> Any:
    """A random text model with weights of some size: 8 layers, 1.6 million weights each."""
    config = vitrail.MistralConfig(
        vocab_size=512, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    return tiny.randomize(vitrail.MistralForCausalLM(config)).eval()


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_the_work_is_what_pytorch_counts(family: str) -> None:
    """Products of matrices to the unit (attention's share is counted beside it: it is left out by both here)."""
    model = tiny.model(family)
    side = model.config.vision_config.patch_size * getattr(model.config, "spatial_merge_size", 1)
    sizes = [(4 * side, 6 * side), (2 * side, 3 * side)]
    ids = torch.tensor([[model.image_token_id] * 24 + [7] + [model.image_token_id] * 6 + [8, 9]])
    pixels = torch.zeros(2, 3, 4 * side, 6 * side)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(ids, pixels, image_sizes=torch.tensor(sizes), logits_to_keep=1)
    products = {
        str(op): n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)
    }
    work = work_of(model, ids.shape[1], sizes).prompt
    text, vision = model.text_config, model.config.vision_config
    attention = text.num_hidden_layers * text.num_attention_heads * text.head_dim * ids.shape[1] ** 2
    patches = [(height // vision.patch_size) * (width // vision.patch_size) for height, width in sizes]
    attention += (
        vision.num_hidden_layers
        * 2
        * vision.num_attention_heads
        * vision.head_dim
        * sum(n * n for n in patches)
    )
    assert 2 * (work - attention) == sum(products.values())


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_the_work_is_what_a_benchmark_counts(family: str) -> None:
    """Two operations a multiplication; of attention the estimate counts half the square, a benchmark the triangle."""
    model = tiny.model(family)
    text, side = model.text_config, model.config.vision_config.patch_size
    grids = [(8, 12), (4, 6)]
    heads = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    for prompt in (7, 40):
        counted = prefill_cost(model, prompt).flop + vision_cost(model, grids).flop
        work = work_of(model, prompt, [(rows * side, columns * side) for rows, columns in grids])
        assert counted - 2 * work.prompt == 2 * heads * prompt  # the diagonal
        assert decode_cost(model, 1, prompt).flop - 2 * work.token == 4 * heads


def test_a_cached_position_is_counted_as_the_cache_takes_it() -> None:
    """Beside the bytes of a cache that was made, in whole blocks."""
    model = tiny.model("llava")
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        cache = KVCache.sized(model.text_config, [128], dtype=dtype)
        assert kv_bytes(model.text_config, dtype) * 128 == cache.nbytes
    costs = [decode_cost(model, 3, context).bytes for context in (0, 50)]
    assert costs[1] - costs[0] == 3 * 50 * kv_bytes(model.text_config, model.dtype)


def test_an_adapted_layer_counts_its_base_once() -> None:
    model = tiny.model("llava")
    before = matrix_size(model.decoder.layers)
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    assert matrix_size(model.decoder.layers) == before  # the adapter's own few numbers are left out


def test_an_id_costs_every_weight_once() -> None:
    model = wide()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    assert work_of(model, 1).token == matrices + 8 * 2 * 6 * 64
    assert work_of(model, 1000).token - work_of(model, 0).token == 8 * 2 * 6 * 64 * 1000


def test_seconds_are_work_times_the_measured_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(layer: Any, rows: int, dtype: torch.dtype) -> float:
        return layer.in_features * layer.out_features * rows * (1e-8 if rows == 1 else 1e-9)

    monkeypatch.setattr(module, "_seconds", seconds)
    model = wide()
    found = estimate(model, 4000)
    work = work_of(model, 4000)
    assert found is not None
    assert found.first_token == pytest.approx(work.prompt * 1e-9)
    assert found.per_token == pytest.approx(work.token * 1e-8)
    assert estimate(model, 40) is None  # quick anywhere


@pytest.mark.parametrize("packed", [False, True])
def test_measuring_is_short_and_its_result_is_of_this_world(packed: bool, tmp_path: Path) -> None:
    model = wide()
    if packed:
        model.save_pretrained(tmp_path)
        config = vitrail.BitsAndBytesConfig(load_in_4bit=True)
        model = vitrail.MistralForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    began = time.process_time()
    many, one = measure(model, 1000)
    assert time.process_time() - began < 4 * module.BUDGET
    assert 1e-14 < many < 1e-6
    assert 1e-14 < one < 1e-6


class Busy:
    """A machine whose products take a millisecond, and whose clock runs on while other processes have it."""

    def __init__(self, away: Callable[[int], float]) -> None:
        self.away, self.products, self.wall, self.worked = away, 0, 0.0, 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.worked

    def product(self, *_: Any) -> None:
        self.products += 1
        self.worked += 1e-3
        self.wall += 1e-3 + self.away(self.products)


AWAY: dict[str, Callable[[int], float]] = {
    "idle": lambda n: 0.0,
    "always busy": lambda n: 0.1,
    "two of three": lambda n: 0.1 if n % 3 else 0.0,
    "at first": lambda n: 0.0 if n > 4 else 1.0,
}


@pytest.mark.parametrize(
    ("away", "coarse"),
    [("idle", False), ("idle", True), ("always busy", False), ("two of three", False), ("two of three", True),
     ("at first", False), ("at first", True)],
)  # fmt: skip
def test_other_processes_do_not_make_the_estimate_longer(
    away: str, coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the processor's time, and where a system counts that coarsely by the probes that nothing disturbed."""
    machine = Busy(AWAY[away])
    monkeypatch.setattr(module, "time", machine)
    if coarse:
        monkeypatch.setattr(machine, "process_time", lambda: 0.0)
    model = wide()
    for layer in model.modules():
        if hasattr(layer, "in_features"):
            layer.forward = machine.product
    many, one = measure(model, 512)
    largest = 384 * 1024
    assert one == pytest.approx(1e-3 / largest)
    assert 1e-3 / largest / 512 <= many <= 1e-3 / largest / 16 * 1.001
    assert machine.products < 600


def test_in_words() -> None:
    assert Estimate(40.4, 0.52).in_words() == "the answer begins in about 40 s, then about 0.52 s a token"
    assert Estimate(4.04, 0.011).in_words() == "the answer begins in about 4.0 s, then about 0.011 s a token"
    assert "about 10 min" in Estimate(600, 12).in_words()
    assert Estimate(6, 0).noticeable
    assert Estimate(0, 0.1).noticeable
    assert not Estimate(2, 0.01).noticeable


def test_ask_tells_what_images_cost_and_how_long_it_will_take(
    tiny_mistral3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "sign.png"
    tiny.image(60, 90).save(sign)
    words = ["What?", "--model", str(tiny_mistral3), "--max-new-tokens", "2"]
    assert main(["ask", str(sign), *words]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "QUICK", 0)
    monkeypatch.setattr(module, "NOTICEABLE", 0)
    assert main(["ask", str(sign), *words]) == 0
    told = capsys.readouterr().err
    assert told.startswith("vitrail: the image costs 40 of ")
    assert "; the answer begins in about " in told
    assert told.count("\n") == 1
    assert main(["ask", str(sign), str(sign), *words]) == 0
    assert "2 images cost 80 of " in capsys.readouterr().err
    assert main(["ask", *words]) == 0
    assert " tokens; the answer begins" in capsys.readouterr().err
    assert main(["ask", str(sign), *words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["estimate"].keys() == {"first_token", "per_token"}
