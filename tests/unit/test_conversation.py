"""Dialogue: the prompts of a conversation are those of a fresh start, and no position or image is computed twice."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import pdfs, tiny
from vitrail.dialogue import Dialogue
from vitrail.errors import ImageError, InputError, PromptError
from vitrail.images.fingerprint import fingerprint
from vitrail.responses.reply import Reply

LENGTH = 5


@pytest.fixture(scope="module", params=["llava", "mistral3"])
def parts(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(model, processor) of a tiny checkpoint."""
    folder = request.getfixturevalue(f"tiny_{request.param}")
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    return model, vitrail.AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def one(tiny_llava: Path) -> tuple[Any, Any]:
    """(model, processor) of one tiny checkpoint, where one will do."""
    model = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_llava)
    return model, vitrail.AutoProcessor.from_pretrained(tiny_llava)


def inputs(parts: tuple[Any, Any], messages: list[Any]) -> Any:
    """The prompt of a fresh start."""
    return parts[1].apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def fresh(parts: tuple[Any, Any], messages: list[Any]) -> str:
    """The answer of a fresh start."""
    given = inputs(parts, messages)
    ids = parts[0].generate(**given, max_new_tokens=LENGTH, do_sample=False)
    text: str = parts[1].decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def ask(dialogue: Dialogue, content: Any, **options: Any) -> Reply:
    return dialogue.ask(content, max_new_tokens=LENGTH, do_sample=False, **options)


def shown(text: str, *images: Any) -> list[dict[str, Any]]:
    """The parts of a question about images."""
    return [*({"type": "image", "image": p} for p in images), {"type": "text", "text": text}]


def test_the_second_turn_computes_only_its_own_tokens(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower runs once for an image, and the decoder sees the new question, the answer's end, and what is drawn."""
    model, _ = parts
    seen: dict[str, list[int]] = {"images": [], "positions": []}
    encode, step = model.encode_images, model.step
    monkeypatch.setattr(
        model,
        "encode_images",
        lambda pixels, sizes: seen["images"].append(len(pixels)) or encode(pixels, sizes),
    )
    monkeypatch.setattr(
        model, "step", lambda rows, *rest: seen["positions"].append(len(rows)) or step(rows, *rest)
    )
    dialogue = Dialogue(model, parts[1])
    first = ask(dialogue, shown("Read.", tiny.image(60, 90)))
    assert (first.reused, first.computed, first.images_encoded) == (0, first.prompt_tokens, 1)
    assert sum(seen["positions"]) == first.prompt_tokens + first.completion_tokens - 1
    assert seen["images"] == [1]
    seen["positions"].clear()
    second = ask(dialogue, "And below?")
    own = second.prompt_tokens - first.prompt_tokens
    assert (
        second.computed <= own
    )  # the answer's ids, if the text gives the same ones again, are not computed either
    assert second.computed + second.reused == second.prompt_tokens
    assert second.reused >= first.prompt_tokens
    assert sum(seen["positions"]) == second.computed + second.completion_tokens - 1
    assert (seen["images"], second.images_encoded, dialogue.images_encoded) == ([1], 0, 1)
    assert second.image_tokens == first.image_tokens


def test_prompts_and_answers_are_those_of_a_fresh_start(parts: tuple[Any, Any]) -> None:
    """Turn by turn, with images in the first and the third one; the ids are those of the whole conversation built anew."""
    dialogue = Dialogue(*parts)
    questions = [
        shown("Read.", tiny.image(40, 60)),
        "And?",
        shown("These?", tiny.image(40, 60, seed=2), tiny.image(20, 30)),
    ]
    for question in questions:
        asked = [*dialogue.messages, {"role": "user", "content": question}]
        turn = ask(dialogue, question)
        assert turn.response.text == fresh(parts, asked)
        assert dialogue.messages[:-1] == asked
        assert dialogue.messages[-1]["role"] == "assistant"
        assert turn.prompt_tokens == inputs(parts, asked)["input_ids"].shape[1]
        whole = [*dialogue.messages, {"role": "user", "content": "x"}]
        dialogue_ids = Dialogue(*parts, messages=whole).prompt_ids()
        assert dialogue_ids == inputs(parts, whole)["input_ids"][0].tolist()


def test_an_answer_whose_text_gives_other_ids(one: tuple[Any, Any]) -> None:
    """What was drawn is cached, what the text gives is the prompt: the common beginning is reused, and no more."""
    model, processor = one
    dialogue = Dialogue(model, processor)
    turn = dialogue.ask("Say it.", do_sample=True, seed=3, temperature=2.0, max_new_tokens=30)
    asked = [*dialogue.messages, {"role": "user", "content": "Again."}]
    wanted = inputs(one, asked)["input_ids"][0].tolist()
    again = ask(dialogue, "Again.")
    assert again.prompt_tokens == len(wanted)
    assert turn.prompt_tokens <= again.reused <= turn.prompt_tokens + turn.completion_tokens - 1
    assert again.response.text == fresh(one, asked)


def test_retry_system_and_clear(one: tuple[Any, Any]) -> None:
    """A retry computes next to nothing, another system prompt everything but the image, a clear begins anew."""
    dialogue = Dialogue(*one)
    with pytest.raises(InputError, match="nothing was asked"):
        dialogue.retry()
    first = ask(dialogue, shown("Read.", tiny.image(40, 60)))
    again = dialogue.retry(max_new_tokens=LENGTH, do_sample=False)
    assert (again.computed, again.images_encoded) == (1, 0)
    assert again.response.text == first.response.text
    assert len(dialogue.messages) == 2
    dialogue.system = "Be brief."
    assert dialogue.system == "Be brief."
    third = dialogue.retry(max_new_tokens=LENGTH, do_sample=False)
    assert third.computed > third.prompt_tokens - 3
    assert (third.images_encoded, dialogue.images_encoded) == (0, 1)
    assert third.response.text == fresh(one, dialogue.messages[:-1])
    dialogue.clear()
    assert dialogue.messages == [{"role": "system", "content": "Be brief."}]
    assert dialogue.cached == 0
    dialogue.system = None
    assert dialogue.messages == []


def test_another_image_of_the_same_size(one: tuple[Any, Any]) -> None:
    """Same words, same ids, another content: nothing of the old image is reused."""
    dialogue = Dialogue(*one)
    ask(dialogue, shown("Read.", tiny.image(40, 60, seed=1)))
    dialogue.load([])
    turn = ask(dialogue, shown("Read.", tiny.image(40, 60, seed=2)))
    assert (turn.reused, turn.images_encoded) == (2, 1)  # <s>[INST]
    assert turn.response.text == fresh(one, dialogue.messages[:-1])


def test_stopping_keeps_the_conversation(one: tuple[Any, Any]) -> None:
    """What there is of the answer is part of it, and the next turn reuses the question and that part."""
    dialogue = Dialogue(*one)
    heard: list[Any] = []
    first = dialogue.ask(
        "Tell me all.",
        on_event=heard.append,
        stop=lambda: len(heard) >= 2,
        max_new_tokens=40,
        do_sample=True,
        seed=1,
    )
    assert first.stopped_by == "interrupted"
    assert 2 <= first.completion_tokens < 40
    assert dialogue.messages[-1] == {"role": "assistant", "content": first.response.text}
    second = ask(dialogue, "Go on.")
    assert second.reused >= first.prompt_tokens


def test_a_mistake_changes_nothing(one: tuple[Any, Any], tmp_path: Path) -> None:
    """An image that is missing, a prompt that is too long, an interruption while it is read."""
    dialogue = Dialogue(*one)
    ask(dialogue, "Hello.")
    before = dialogue.messages
    with pytest.raises(ImageError, match="no file"):
        ask(dialogue, [{"type": "image", "path": str(tmp_path / "none.png")}])
    with pytest.raises(PromptError, match="no source"):
        ask(dialogue, [{"type": "image"}])
    with pytest.raises(InputError, match="positions"):
        ask(dialogue, "word " * 9000)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(dialogue, "How are you?", progress=interrupt)
    assert dialogue.messages == before
    asked = [*before, {"role": "user", "content": "Well?"}]
    assert ask(dialogue, "Well?").response.text == fresh(one, asked)


def test_the_answer_is_cut_to_what_the_context_has_left(one: tuple[Any, Any]) -> None:
    """Not refused, as generate() would."""
    model, processor = one
    dialogue = Dialogue(model, processor)
    limit = model.text_config.max_position_embeddings
    turn = dialogue.ask("Hello.", max_new_tokens=limit, do_sample=False, stop=lambda: True)
    assert turn.completion_tokens == 1


def test_a_pdf_counts_as_its_pages(one: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a message of a conversation too, and its pages go through the tower once."""
    pages = [tiny.image(40, 30, seed=n) for n in range(3)]
    monkeypatch.setattr("vitrail.images.pdf._render", lambda *_: pages)
    data = base64.b64encode(pdfs.pdf((9, 9, pdfs.RED))).decode()
    dialogue = Dialogue(*one)
    part = {"type": "file", "file": {"file_data": data}}
    first = ask(dialogue, [part, {"type": "text", "text": "Read."}])
    assert (len(first.image_tokens), first.images_encoded) == (3, 3)
    assert first.response.text == fresh(one, [{"role": "user", "content": shown("Read.", *pages)}])
    assert ask(dialogue, "And?").images_encoded == 0


def test_prepared_pixels_are_not_kept(one: tuple[Any, Any]) -> None:
    """They are made anew when they are needed again, the same."""
    dialogue = Dialogue(*one)
    ask(dialogue, shown("Read.", tiny.image(40, 60)))
    (image,) = (part.source for part in dialogue._entries[0].message.images)
    assert image._pixels is None
    assert fingerprint(image.pixels()) == image.key


def test_text_alone_with_a_tokenizer(tiny_llava: Path) -> None:
    """A checkpoint that reads text only has no processor; images are refused."""
    config = vitrail.AutoConfig.from_pretrained(tiny_llava).text_config
    model = tiny.randomize(vitrail.MistralForCausalLM(config)).eval()
    tokenizer = vitrail.AutoTokenizer.from_pretrained(tiny_llava)
    dialogue = Dialogue(model, tokenizer)
    first, second = ask(dialogue, "Hello."), ask(dialogue, "And?")
    assert second.reused >= first.prompt_tokens
    wanted = tokenizer.apply_chat_template(
        dialogue.messages[:-1], add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    assert second.prompt_tokens == wanted.shape[1]
    out = model.generate(wanted, max_new_tokens=LENGTH, do_sample=False)
    assert tokenizer.decode(out[0, wanted.shape[1] :], skip_special_tokens=True) == second.response.text
    buffer = BytesIO()
    tiny.image(9, 9).save(buffer, "PNG")
    with pytest.raises(PromptError, match="text only"):
        ask(dialogue, shown("Read.", buffer.getvalue()))


def test_half_precision_reuses_too(one: tuple[Any, Any]) -> None:
    """The images come in the model's numbers."""
    model = vitrail.LlavaForConditionalGeneration(one[0].config).to(torch.bfloat16)
    dialogue = Dialogue(tiny.randomize(model).eval(), one[1])
    first = ask(dialogue, shown("Read.", tiny.image(20, 30)))
    second = ask(dialogue, "And?")
    assert second.reused >= first.prompt_tokens and second.images_encoded == 0


def test_reply_old_names_of_attributes_warn_with_the_new_one() -> None:
    from vitrail.responses.events import Response
    from vitrail.responses.reply import Reply

    reply = Reply(Response(()), 3, 0, 3, (2,), 1, 0, "stop", {})
    with pytest.warns(DeprecationWarning, match="is called image_tokens"):
        assert reply.picture_tokens == (2,)
    with pytest.warns(DeprecationWarning, match="is called images_encoded"):
        assert reply.pictures_encoded == 1


@pytest.mark.parametrize("name", ["images", "attention_mask", "past_key_values", "input_ids", "pixel_values"])
def test_inputs_that_the_conversation_sets_are_refused_by_name(name: str, one: tuple[Any, Any]) -> None:
    dialogue = Dialogue(*one)
    with pytest.raises(InputError, match=rf"ask\(\) takes no {name}: the conversation sets them"):
        dialogue.ask("hello", **{name: None})
    assert not dialogue.messages
