"""Values of wrong kinds in every public call: it works, or a VitrailError says so in a sentence and nothing was changed."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import signal
import socket
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitrail
from tests import tiny
from tests.wrong_kinds import CHAT, IDS, IMAGE, WRONG, Call, World, public_calls
from vitrail.arguments import check, checked

FEW, MANY = 211, 13  # of so many cases one is tried: in every run, and in each part of the slow test
SECONDS = 30.0
# They would run for long, as asked for.
ENDLESS = {("max_new_tokens", "huge"), ("max_new_tokens", "tensor of ids"), ("timeout", "huge")}


class Hang(BaseException):
    """A call that does not come back."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("wrong") / "model", "mistral3")
    return World(folder, tmp_path_factory.mktemp("wrong") / "adapter")


@pytest.fixture
def _sealed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No connection, and an end to calls that hang."""

    def refuse(*_: Any) -> None:
        raise Hang("a connection")

    def ring(*_: Any) -> None:
        raise Hang("too long")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = signal.signal(signal.SIGALRM, ring)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run(world: World, call: Call, folder: Path, changed: dict[str, Any]) -> str | None:
    """Make one call in `folder`; what is wrong with how it ends."""
    given = {
        name: value(world, folder) if isinstance(value, types.LambdaType) else value
        for name, value in call.arguments.items()
    } | changed
    receiver = call.make()
    before, files = state(receiver), sorted(os.listdir(folder))
    function = getattr(receiver, call.method) if call.method else receiver
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            drain(function(**given))
    except vitrail.VitrailError as error:
        if len(str(error)) < 10 or "\n" in str(error):
            return f"no sentence: {str(error)[:100]!r}"
        if state(receiver) != before:
            return "it was refused and changed what it was called on"
        return (
            None if sorted(os.listdir(folder)) == files else f"it was refused and left {os.listdir(folder)}"
        )
    except (Exception, Hang) as error:
        return f"raw {type(error).__name__}: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def drain(answer: Any) -> None:
    """Take the first pieces of what is made lazily."""
    if isinstance(answer, types.GeneratorType) or type(answer).__name__ == "ReplyStream":
        for _, _ in zip(range(3), answer, strict=False):
            pass
        answer.close()
    elif isinstance(answer, contextlib.AbstractContextManager) and "contextlib" in type(answer).__module__:
        with answer:
            pass


def state(thing: Any) -> Any:
    """What a refused call must leave as it is."""
    if isinstance(thing, type) or callable(getattr(thing, "__wrapped__", None)):
        return None
    if isinstance(thing, torch.nn.Module):
        parts = {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in thing.named_parameters()}
        return parts, repr(thing.config), sorted(getattr(thing, "peft_config", {}))
    if hasattr(thing, "messages"):
        return copy.deepcopy(thing.messages)
    if hasattr(thing, "get_vocab"):
        return len(thing), thing.special_tokens_map, thing.padding_side
    return repr(thing.to_dict()) if hasattr(thing, "to_dict") else None


def faults(world: World, tmp_path: Path, chosen: Callable[[int], bool]) -> list[str]:
    """What is wrong in the chosen cases, by a number that stays with each."""
    found = []
    for call in public_calls(world):
        for parameter in call.parameters:
            for kind, make in WRONG.items():
                name = f"{call.name}({parameter}={kind})"
                if (parameter, kind) in ENDLESS or not chosen(zlib.crc32(name.encode())):
                    continue
                folder = tmp_path / str(len(os.listdir(tmp_path)))
                folder.mkdir()
                os.chdir(folder)
                value = make(folder)
                if fault := run(world, call, folder, {parameter: value}):
                    found.append(f"{name}: {fault}")
    return found


@pytest.mark.usefixtures("_sealed")
def test_every_public_call_works_with_right_arguments_or_says_why_not(world: World, tmp_path: Path) -> None:
    """The examples reach what they are made for; a new public name needs one in tests/wrong_kinds.py, or fails here."""
    calls = list(public_calls(world))
    assert len(calls) > 150
    os.chdir(tmp_path)
    told = []
    for number, call in enumerate(calls):
        folder = tmp_path / str(number)
        folder.mkdir()
        if fault := run(world, call, folder, {}):
            told.append(f"{call.name}: {fault}")
    assert not told, "\n".join(told)


@pytest.mark.usefixtures("_sealed")
def test_some_wrong_kinds_are_refused_in_a_sentence(world: World, tmp_path: Path) -> None:
    """The same with fewer cases."""
    found = faults(world, tmp_path, lambda number: number % FEW == 5)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.usefixtures("_sealed")
@pytest.mark.parametrize("part", range(2))
def test_wrong_kinds_are_refused_in_a_sentence(world: World, tmp_path: Path, part: int) -> None:
    """Every parameter of every public call, one of WRONG in its place: a sample that is always the same."""
    found = faults(world, tmp_path, lambda number: number % MANY == part)
    assert not found, "\n".join(found)


# --- the checks themselves ---------------------------------------------------------------------------------


@checked
def example(path: str | os.PathLike[str], count: int | None = None, *, on: bool = False, names: list[str] | None = None,
            scale: float = 1.0, **options: Any) -> str:  # fmt: skip
    """A function whose arguments are checked."""
    return f"{path} {count} {on} {names} {scale} {options}"


@pytest.mark.parametrize(
    "given",
    [
        {"path": "a"},
        {"path": Path("a"), "count": np.int64(3), "on": 1, "scale": 2},
        {"path": "a", "names": ("b", "c"), "scale": np.float32(0.5)},
        {"path": "a", "attention_mask": np.ones(3), "revision": None},
    ],
)
def test_checked_arguments_of_the_right_kind_pass(given: dict[str, Any]) -> None:
    assert example(**given) == example.__wrapped__(**given)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": 5}, "example: path must be a path; got int 5"),
        ({"path": None}, "path must be a path; got None"),
        ({"path": "a\0b"}, "path is no name that a file can have"),
        ({"path": "a" * 300}, "path is no name that a file can have"),
        ({"path": "a", "count": True}, "count must be an integer or None; got bool True"),
        ({"path": "a", "count": "3"}, "got the string '3'"),
        ({"path": "a", "scale": float("nan")}, "scale must be a number; got float nan"),
        ({"path": "a", "names": "abc"}, "names must be a list of strings or None"),
        ({"path": "a", "names": [1]}, "names must be a list of strings"),
        ({"path": "a", "on": [1]}, "on must be True or False; got a value of type list"),
        ({"path": "a", "revision": 5}, "revision must be a string or None; got int 5"),
        ({"path": "a", "temperature": np.ones(3)}, r"temperature cannot be an array.*shape \(3,\)"),
        ({}, "missing a required argument: 'path'"),
    ],
)
def test_checked_arguments_of_the_wrong_kind_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(vitrail.ArgumentError, match=said) as caught:
        example(**given)
    assert isinstance(caught.value, (vitrail.InputError, TypeError))


def test_unknown_arguments_name_the_one_that_was_meant() -> None:
    with pytest.raises(
        vitrail.ArgumentError,
        match=r"LoraConfig does not know .*'target_module'; did you mean target_modules",
    ):
        vitrail.LoraConfig(target_module=["q_proj"])  # type: ignore[call-arg]
    with pytest.raises(vitrail.ArgumentError, match="FetchPolicy does not know the argument 'retry'"):
        vitrail.FetchPolicy(retry=3)  # type: ignore[call-arg]


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(vitrail.ArgumentError) as caught:
        check("load", "token", b"hf_secret", str | None)
    assert "hf_secret" not in str(caught.value)


# --- what is natural works ---------------------------------------------------------------------------------


def made(world: World) -> dict[str, Any]:
    """A prompt with one image, as the processor makes it."""
    return dict(world.processor(text="<s>[INST][IMG]What is it?[/INST]", images=IMAGE, return_tensors="pt"))


@pytest.mark.parametrize("form", ["numpy", "lists", "int32", "nested pixels"])
def test_forward_takes_inputs_in_the_forms_of_processors(world: World, form: str) -> None:
    """Same loss and logits, to the bit."""
    given = made(world)
    given["labels"] = given["input_ids"].clone()
    forms: dict[str, Callable[[torch.Tensor], Any]] = {
        "numpy": lambda t: t.numpy(),
        "lists": lambda t: t.tolist(),
        "int32": lambda t: t if t.is_floating_point() else t.int(),
        "nested pixels": lambda t: [[t[0]]] if t.is_floating_point() else t,
    }
    with torch.no_grad():
        wanted = world.model(**given)
        found = world.model(**{name: forms[form](value) for name, value in given.items()})
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.loss, wanted.loss)


def test_images_of_several_sizes_may_lie_in_a_list(world: World) -> None:
    """They are padded, and the sizes are theirs: the features of each alone."""
    one, two = torch.rand(3, 28, 42), torch.rand(3, 56, 28)
    together = world.model.get_image_features([one, two])
    alone = [*world.model.get_image_features(one[None]), *world.model.get_image_features(two[None])]
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("form", ["numpy", "lists"])
def test_generate_takes_arrays_and_lists(world: World, form: str) -> None:
    given = made(world)
    changed = {n: v.numpy() if form == "numpy" else v.tolist() for n, v in given.items()}
    options = {"max_new_tokens": 3, "eos_token_id": torch.tensor([2])}
    assert (
        world.model.generate(**changed, **options).tolist()
        == world.model.generate(**given, **options).tolist()
    )
    assert (
        world.text.generate([[30, 31]], max_new_tokens=2).tolist()
        == world.text.generate(torch.tensor([[30, 31]]), max_new_tokens=2).tolist()
    )


def test_generate_puts_images_into_embeddings(world: World) -> None:
    """Rows that equal the image token's embedding become the image's features, as in forward()."""
    given = made(world)
    embeds = world.model.get_input_embeddings()(given["input_ids"])
    beside = {name: given[name] for name in ("pixel_values", "image_sizes", "attention_mask")}
    new = world.model.generate(inputs_embeds=embeds, **beside, max_new_tokens=4)
    whole = world.model.generate(**given, max_new_tokens=4)
    assert new.tolist() == whole[:, given["input_ids"].shape[1] :].tolist()
    with pytest.raises(vitrail.InputError, match="0 image tokens, the images have"):
        world.model.generate(
            inputs_embeds=embeds[:, :1], pixel_values=given["pixel_values"], max_new_tokens=1
        )


@pytest.mark.parametrize("nested", [True, False])
def test_none_among_images_is_a_text_without_one(world: World, nested: bool) -> None:
    texts = ["[IMG] one", "none", "[IMG] two"]
    found = world.processor(
        text=texts, images=[[IMAGE], None, [IMAGE]] if nested else [IMAGE, None, IMAGE], padding=True
    )
    wanted = world.processor(text=texts, images=[[IMAGE], [], [IMAGE]], padding=True)
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert torch.equal(found["pixel_values"], wanted["pixel_values"])
    with pytest.raises(vitrail.InputError, match="2 entries for 3 texts"):
        world.processor(text=texts, images=[IMAGE, None])


def test_a_refused_answer_leaves_the_conversation(world: World) -> None:
    dialogue = vitrail.Dialogue(world.model, world.processor, CHAT)
    for options in (
        {"max_new_tokens": "3"},
        {"on_event": 5},
        {"streamer": print},
        {"temperature": np.ones(2)},
    ):
        with pytest.raises(vitrail.VitrailError):
            dialogue.ask("again", **options)  # type: ignore[arg-type]
        assert dialogue.messages == CHAT


def test_a_configuration_that_json_cannot_hold_is_shown_and_not_saved(tmp_path: Path) -> None:
    for config in (
        vitrail.GenerationConfig(watermarking_config=object()),
        vitrail.MistralConfig(note=object()),
    ):
        assert "object object" in repr(config)
        with pytest.raises(vitrail.ConfigError, match="value that JSON cannot"):
            config.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_logits_of_lists_are_those_of_tensors(world: World) -> None:
    with torch.no_grad():
        assert torch.equal(world.text(IDS.tolist()).logits, world.text(IDS).logits)
