"""weights/devices.py: what a device_map means. Other devices are played by "meta", which every machine has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import vitrail
from tests import tiny
from vitrail.errors import InputError, UnsupportedError
from vitrail.weights import devices
from vitrail.weights.devices import join, moved, placement, spread

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def model() -> nn.Module:
    with torch.device("meta"):
        built: nn.Module = vitrail.LlavaForConditionalGeneration(tiny.config("llava"))
    return built


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Any:
    """accelerators(n): as if the machine had n of them."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(devices, "_accelerator", lambda: ("cuda" if count else None, count))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 100))

    return pretend


@pytest.mark.parametrize("value", [None, "cpu", torch.device("cpu"), {"": "cpu"}])
def test_the_cpu(model: nn.Module, value: Any) -> None:
    assert placement(model, value).of("lm_head.weight") == CPU


def test_auto_takes_what_there_is(model: nn.Module, accelerators: Any) -> None:
    accelerators(0)
    assert placement(model, "auto").devices == {"": CPU}
    accelerators(1)
    assert placement(model, "auto").devices == {"": torch.device("cuda:0")}
    assert placement(model, 0).devices == {"": torch.device("cuda:0")}
    assert placement(model, "cuda").devices == {"": torch.device("cuda")}


@pytest.mark.parametrize("value", ["cuda", "cuda:0", 0, {"": 0}, {"": "xpu"}, -1, True, {"": "cuda:0"}])
def test_what_the_machine_does_not_have(model: nn.Module, accelerators: Any, value: Any) -> None:
    accelerators(0)
    with pytest.raises(InputError, match="does not have"):
        placement(model, value)


@pytest.mark.parametrize("value", ["cuda:7", 7])
def test_a_number_beyond_the_last(model: nn.Module, accelerators: Any, value: Any) -> None:
    accelerators(2)
    with pytest.raises(InputError, match="does not have"):
        placement(model, value)


@pytest.mark.parametrize("value", ["balanced", "gpu", 1.5, "cpu:x"])
def test_what_is_no_device(model: nn.Module, value: Any) -> None:
    with pytest.raises(InputError, match="is no device"):
        placement(model, value)


def test_disk_is_not_supported(model: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="disk"):
        placement(model, {"": "disk"})


def test_the_longest_path_decides(model: nn.Module) -> None:
    where = placement(model, {"": "cpu", "model.vision_tower": "meta", "model.vision_tower.ln_pre": "cpu"})
    assert where.of("model.vision_tower.patch_conv.weight") == META
    assert where.of("model.vision_tower.ln_pre.weight") == CPU
    assert where.of("model.vision_towers") == CPU


def test_a_path_that_is_none(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"does not have: vision_towel, model\.layers"):
        placement(model, {"": "cpu", "vision_towel": "cpu", "model.layers": "cpu"})


def test_modules_that_are_left_out(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"leaves out .*linear_1\.weight.*lm_head\.weight"):
        placement(model, {"model.vision_tower": "cpu", "model.language_model": "cpu"})


def test_several_accelerators_share_layer_by_layer(model: nn.Module, accelerators: Any) -> None:
    accelerators(3)
    where = placement(model, "auto")
    used = [where.of(name).index for name, _ in model.named_parameters()]
    assert set(used) == {0, 1, 2}
    for kind in ("model.language_model.layers", "model.vision_tower.transformer.layers"):
        for index, layer in enumerate(model.get_submodule(kind).children()):
            assert len({where.of(f"{kind}.{index}.{name}") for name, _ in layer.named_parameters()}) == 1
    sizes = [0, 0, 0]
    for name, parameter in model.named_parameters():
        index = where.of(name).index
        assert index is not None
        sizes[index] += parameter.numel()
    assert max(sizes) < 0.6 * sum(sizes)


def test_shares_follow_the_weights() -> None:
    layers = nn.Module()
    layers.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(10))
    given = spread(layers, [(CPU, 1), (META, 4)])
    assert list(given) == [f"layers.{i}" for i in range(10)]
    assert list(given.values()) == [CPU] * 2 + [META] * 8


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    more: tuple[Tensor, ...] = ()


@dataclass
class Open:
    x: Tensor


def test_moving_reaches_into_containers() -> None:
    x = torch.ones(2)
    result = moved({"a": [x, 1], "b": Pair(x, "n"), "c": Frozen(x, (x,)), "d": None}, META)
    assert result["a"][0].is_meta
    assert result["b"] == Pair(result["b"].x, "n")
    assert result["b"].x.is_meta
    assert result["c"].x.is_meta
    assert result["c"].more[0].is_meta


def test_what_need_not_move_keeps_its_identity() -> None:
    x = torch.ones(2)
    for value in (x, [x], (x, 1), Frozen(x, (x,)), Pair(x, "n")):
        assert moved(value, CPU) is value
    kept = Open(x)
    assert moved(kept, META) is kept


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values come back from "meta" as zeros, as if it could be read."""

    def transfer(tensor: Tensor, device: torch.device) -> Tensor:
        return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    monkeypatch.setattr(devices, "_transfer", transfer)


@pytest.mark.usefixtures("two_ways")
def test_inputs_follow_the_modules_and_results_come_home() -> None:
    chain = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to("meta"))
    seen: list[torch.device] = []
    chain[1][0].register_forward_pre_hook(lambda module, args: seen.append(args[0].device))
    join(chain, placement(chain, {"0": "cpu", "1": "meta"}))
    assert chain(torch.ones(1, 2)).device == CPU
    assert seen == [META]
    assert [name for name, module in chain.named_modules() if module._forward_hooks] == ["0", "1"]


def test_one_device_means_no_hooks() -> None:
    chain = nn.Sequential(nn.Linear(2, 3))
    join(chain, placement(chain, {"0": "cpu"}))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in chain.modules())


@pytest.mark.usefixtures("two_ways")
@pytest.mark.parametrize(
    "away",
    [
        "model.language_model",
        "model.language_model.layers.1",
        "model.language_model.layers.1.mlp",
        "model.language_model.embed_tokens",
        "model.language_model.norm",
        "model.vision_tower.transformer",
        "model.multi_modal_projector",
        "lm_head",
    ],
)
def test_a_model_on_two_devices_runs_and_generates(tmp_path: Path, away: str) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    model = vitrail.LlavaForConditionalGeneration.from_pretrained(
        folder, device_map={"": "cpu", away: "meta"}
    )
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"}
    assert all(p.is_meta for p in model.get_submodule(away).parameters())
    given = {"input_ids": torch.tensor([[1, 5, 10, 10, 12, 10, 10, 13]])}
    given |= {"pixel_values": torch.zeros(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    output = model(**given, output_hidden_states=True)
    assert output.logits.shape == (1, 8, model.config.text_config.vocab_size)
    assert {state.device for state in output.hidden_states} == {output.logits.device} == {model.device}
    assert model.generate(**given, max_new_tokens=3, do_sample=False).shape[1] > 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_model_over_cpu_and_accelerator_gives_the_same(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a")
    whole = vitrail.LlavaForConditionalGeneration.from_pretrained(folder)
    split = {"": "cpu", "model.language_model.layers.1": 0, "model.vision_tower": "cuda"}
    model = vitrail.LlavaForConditionalGeneration.from_pretrained(folder, device_map=split)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        wanted, got = whole(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(
        whole.generate(input_ids=ids, do_sample=False), model.generate(input_ids=ids, do_sample=False)
    )
    assert (wanted - got.cpu()).abs().max() <= 1e-4 * wanted.abs().max()
