"""One model in several threads: each answer is what it is alone, and what would mix answers is refused."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail.dialogue import Dialogue
from vitrail.errors import InputError
from vitrail.generate.loop import stream_text
from vitrail.kv.cache import KVCache
from vitrail.ops.in_use import alone, changing, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("threads") / "model", family="mistral3")


@pytest.fixture
def model(folder: Path) -> Any:
    return vitrail.AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return vitrail.AutoProcessor.from_pretrained(folder)


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each call gives, or its error, where all begin together."""
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = works[number]()
        except BaseException as error:  # told below
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def question(processor: Any, number: int) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"question {number} " * (number + 1)}]
    if number % 2:
        parts.insert(0, {"type": "image", "image": tiny.image(30 + 10 * number, 40, seed=number)})
    chat = [{"role": "user", "content": parts}]
    return dict(
        processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("packed", [None, "q4"])
def test_generate_in_several_threads_equals_alone(folder: Path, processor: Any, packed: str | None) -> None:
    options = {} if packed is None else {"quantization_config": vitrail.QuantizeConfig()}
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder, **options)
    inputs = [question(processor, number) for number in range(4)]

    def answer(number: int) -> torch.Tensor:
        sampled = {"do_sample": True, "seed": 7, "temperature": 1.5} if number % 3 else {"do_sample": False}
        return model.generate(**inputs[number], max_new_tokens=6, **sampled)

    expected = [answer(number) for number in range(4)]
    for _ in range(2):
        for number, found in enumerate(at_once([lambda n=n: answer(n) for n in range(4)])):
            assert isinstance(found, torch.Tensor), found
            assert torch.equal(found, expected[number])


def test_dialogues_of_one_model_in_several_threads_equal_alone(model: Any, processor: Any) -> None:
    def talk(number: int) -> list[Any]:
        dialogue = Dialogue(model, processor)
        for turn in range(2):
            dialogue.ask(f"{number} says {turn}", max_new_tokens=6)
        return dialogue.messages

    expected = [talk(number) for number in range(4)]
    assert at_once([lambda n=n: talk(n) for n in range(4)]) == expected


def test_one_dialogue_in_several_threads_says_no_and_never_mixes(model: Any, processor: Any) -> None:
    dialogue = Dialogue(model, processor)
    found = at_once([lambda n=n: dialogue.ask(f"question {n}", max_new_tokens=30) for n in range(4)])
    refused = [one for one in found if isinstance(one, Exception)]
    assert len(refused) >= 1
    assert all(isinstance(one, InputError) and "this Dialogue is in use" in str(one) for one in refused)
    roles = [message["role"] for message in dialogue.messages]
    assert roles == ["user", "assistant"] * (len(found) - len(refused))
    dialogue.ask("and then?", max_new_tokens=3)  # free again


def test_dialogue_used_from_its_own_callbacks_is_refused(model: Any, processor: Any) -> None:
    dialogue = Dialogue(model, processor)
    for use in (dialogue.clear, lambda: dialogue.ask("more"), lambda: dialogue.load([]), dialogue.retry):
        with pytest.raises(InputError, match="this Dialogue is in use"):
            dialogue.ask("hello", max_new_tokens=3, on_prompt=lambda _, use=use: use())
    assert dialogue.messages == []


def test_adapters_while_an_answer_is_made_are_refused(model: Any, processor: Any) -> None:
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    changes: list[Callable[[], Any]] = [
        lambda: model.set_adapter("default"),
        model.disable_adapters,
        model.enable_adapters,
        lambda: model.delete_adapter("default"),
        lambda: model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["k_proj"]), "other"),
        model.merge_and_unload,
        lambda: model.resize_token_embeddings(500),
    ]
    inputs = question(processor, 0)
    expected = model.generate(**inputs, max_new_tokens=6)
    said: list[str] = []

    def meddle(*_: Any) -> bool:
        for found in at_once(changes):
            assert isinstance(found, InputError), found
            said.append(str(found))
        return False

    assert torch.equal(model.generate(**inputs, max_new_tokens=6, stopping_criteria=meddle), expected)
    assert len(said) == 6 * len(changes)
    assert all("while generate() runs on this model" in text for text in said)
    model.disable_adapters()
    assert model.active_adapters() == ["default"]


def test_stream_abandoned_half_way_releases_model_and_cache(model: Any, processor: Any) -> None:
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    inputs = question(processor, 0)
    stream = stream_text(model, processor, inputs, max_new_tokens=50)
    next(stream)
    with pytest.raises(InputError, match="a stream that is not closed"):
        model.set_adapter("default")
    stream.close()  # type: ignore[attr-defined]
    model.set_adapter("default")
    stream = stream_text(model, processor, inputs, max_new_tokens=50)
    next(stream)
    del stream
    gc.collect()
    model.set_adapter("default")
    assistant = vitrail.Assistant(model, processor)
    pieces = assistant.stream(None, "a long question", max_new_tokens=200)
    next(pieces)
    pieces.close()
    model.set_adapter("default")
    assert not [thread for thread in threading.enumerate() if "run" in thread.name.lower() and thread.daemon]


def test_generate_that_fails_releases_the_model(model: Any, processor: Any) -> None:
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))

    def fails(*_: Any) -> bool:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.generate(**question(processor, 0), max_new_tokens=4, stopping_criteria=fails)
    model.set_adapter("default")


def test_one_cache_in_two_calls_is_refused(model: Any) -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    longer = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11, 12, 13]])
    cache = KVCache.sized(model.kv_geometry, [64])

    def again(*_: Any) -> bool:
        with pytest.raises(InputError, match="this past_key_values is in use"):
            model.generate(longer, past_key_values=cache, max_new_tokens=2)
        return False

    cache.open()
    out = model.generate(ids, past_key_values=cache, max_new_tokens=2, stopping_criteria=again)
    model.generate(out, past_key_values=cache, max_new_tokens=1)  # free again
    assert torch.equal(out, model.generate(ids, max_new_tokens=2))


def test_running_waits_for_a_change_in_another_thread() -> None:
    class Thing:
        pass

    thing, order, begun, go_on = Thing(), list[str](), threading.Event(), threading.Event()

    def change() -> None:
        with changing(thing, "x"), changing(thing, "x"):  # changes may call changes
            begun.set()
            go_on.wait(10)
            order.append("changed")

    def answer() -> None:
        begun.wait(10)
        go_on.set()
        with running(thing):
            order.append("answered")

    assert at_once([change, answer]) == [None, None]
    assert order == ["changed", "answered"]
    with running(thing), running(thing), pytest.raises(InputError, match=r"^x while"), changing(thing, "x"):
        pass
    with alone(thing, "it"), pytest.raises(InputError, match=r"^it is in use"), alone(thing, "it"):
        pass
