"""vitrail.load: an object that asks, streams, converses and reads; its answers are those of the pieces beneath it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitrail
from tests import pdfs, tiny
from vitrail.images.load import load_image
from vitrail.reader.reading import BatchReader
from vitrail.responses.events import TextDelta

SIGN = Path(__file__).parents[2] / "examples" / "sign.png"
TEXT = "Reading Room\nSecond Floor"
QUESTION = "What does it say?"
LENGTH = 6


@pytest.fixture(scope="module")
def reader() -> vitrail.Assistant:
    """The embedded reader, loaded once."""
    return vitrail.load()


@pytest.fixture(scope="module")
def assistant(tiny_mistral3: Path) -> vitrail.Assistant:
    """A tiny checkpoint with random weights."""
    return vitrail.load(tiny_mistral3)


def fresh(assistant: vitrail.Assistant, images: list[Any], text: str = QUESTION, **options: Any) -> str:
    """The answer through Hugging Face's names."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    inputs = assistant.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = assistant.model.generate(**inputs, max_new_tokens=LENGTH, **options)
    return str(assistant.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_load_without_a_name_reads_the_sign(reader: vitrail.Assistant) -> None:
    """The three lines of the README."""
    reply = reader.ask(SIGN, QUESTION)
    assert str(reply) == reply.text == TEXT
    assert (reply.stopped_by, reply.reasoning, reply.tool_calls) == ("stop", "", ())
    assert reply.prompt_tokens > sum(reply.image_tokens) > 0
    assert set(reply.seconds) == {"prepare", "first_token", "total"}
    assert reader.model.dtype == torch.float32


@pytest.mark.parametrize("form", ["path", "text", "pil", "array", "bytes", "list"])
def test_ask_any_form_of_an_image_gives_the_same_answer(
    form: str, assistant: vitrail.Assistant, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    image = tiny.image(60, 90)
    image.save(path)
    given: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "pil": image,
        "array": np.asarray(image),
        "bytes": path.read_bytes(),
        "list": [path],
    }
    reply = assistant.ask(given[form], QUESTION, max_new_tokens=LENGTH)
    assert reply.text == fresh(assistant, [image])
    assert reply.completion_tokens <= LENGTH


def test_ask_several_images_and_none(assistant: vitrail.Assistant) -> None:
    images = [tiny.image(40, 60), tiny.image(20, 30)]
    reply = assistant.ask(images, QUESTION, max_new_tokens=LENGTH)
    assert (reply.text, len(reply.image_tokens)) == (fresh(assistant, images), 2)
    reply = assistant.ask(None, "Hello.", max_new_tokens=LENGTH)
    assert (reply.text, reply.image_tokens) == (fresh(assistant, [], "Hello."), ())


def test_ask_a_pdf_counts_as_its_pages(
    assistant: vitrail.Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its file is called."""
    pages = [tiny.image(40, 30, seed=n) for n in range(2)]
    monkeypatch.setattr("vitrail.images.pdf._render", lambda *_: pages)
    path = tmp_path / "scan"
    path.write_bytes(pdfs.pdf((9, 9, pdfs.RED)))
    reply = assistant.ask(path, QUESTION, max_new_tokens=LENGTH)
    assert (reply.text, len(reply.image_tokens)) == (fresh(assistant, pages), 2)


def test_ask_options_reach_prompt_images_and_generation(assistant: vitrail.Assistant) -> None:
    image = tiny.image(60, 90)
    plain = assistant.ask(image, QUESTION, max_new_tokens=2)
    assert plain.stopped_by == "length"
    assert (
        assistant.ask(image, QUESTION, system="Be brief.", max_new_tokens=2).prompt_tokens
        > plain.prompt_tokens
    )
    small = assistant.ask(image, QUESTION, max_image_tokens=20, max_new_tokens=2)
    assert sum(small.image_tokens) <= 20 < sum(plain.image_tokens)
    drawn = {"do_sample": True, "temperature": 1.5, "seed": 4}
    reply = assistant.ask(image, QUESTION, max_new_tokens=LENGTH, **drawn)
    assert reply.text == fresh(assistant, [image], **drawn)


def test_ask_mistakes_are_vitrail_errors(assistant: vitrail.Assistant, tmp_path: Path) -> None:
    with pytest.raises(vitrail.ImageError, match="no file"):
        assistant.ask(tmp_path / "none.png", QUESTION)
    with pytest.raises(vitrail.InputError, match=r"ask\(images, question\)"):
        assistant.ask(QUESTION, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(vitrail.InputError, match="nonsense"):
        assistant.ask(None, "Hello.", nonsense=1)
    with pytest.raises(vitrail.CheckpointError):
        vitrail.load(tmp_path / "nowhere")
    with pytest.raises(vitrail.InputError, match=r"'q3' is not known; one of .*q4, q8"):
        vitrail.load(quantization="q3")
    with pytest.raises(vitrail.InputError, match="got int"):
        vitrail.load(5)  # type: ignore[arg-type]
    with pytest.raises(vitrail.PromptError, match="list of mappings"):
        assistant.chat("Hello.")  # type: ignore[arg-type]
    with pytest.raises(vitrail.InputError, match="at least 1; got 0"):
        assistant.ask(None, "Hello.", max_new_tokens=0)
    for files in (None, b"x.png", [load_image(SIGN)]):
        with pytest.raises(vitrail.InputError, match="files"):
            assistant.read(files)  # type: ignore[arg-type]


def test_stream_gives_the_text_of_ask_in_pieces(reader: vitrail.Assistant) -> None:
    """Every event is seen where the pieces are taken, and the reply is there at the end."""
    seen: list[tuple[Any, Any]] = []
    stream = reader.stream(
        SIGN, QUESTION, on_event=lambda event: seen.append((event, threading.current_thread()))
    )
    assert stream.reply is None
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == TEXT
    assert stream.reply is not None
    assert stream.reply.text == TEXT
    assert [event.text for event, _ in seen if isinstance(event, TextDelta)] == pieces
    assert {thread for _, thread in seen} == {threading.current_thread()}


def test_stream_errors_are_raised_where_it_is_iterated(assistant: vitrail.Assistant, tmp_path: Path) -> None:
    stream = assistant.stream(tmp_path / "none.png", QUESTION)
    with pytest.raises(vitrail.ImageError, match="no file"):
        next(stream)


def test_stream_closed_or_stopped_ends_the_answer(assistant: vitrail.Assistant) -> None:
    """The thread that made it is gone."""
    before = threading.active_count()
    options: dict[str, Any] = {"max_new_tokens": 2000, "do_sample": True, "seed": 1}
    stream = assistant.stream(None, "Tell me all.", **options)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert list(stream) == []
    assert stream.reply is None
    events: list[Any] = []
    stream = assistant.stream(
        None, "Tell me all.", stop=lambda: len(events) > 3, on_event=events.append, **options
    )
    pieces = list(stream)
    assert stream.reply is not None
    assert stream.reply.stopped_by == "interrupted"
    assert 4 <= stream.reply.completion_tokens < 2000
    assert "".join(pieces) == stream.reply.text


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_stream_interrupted_while_the_prompt_is_read(assistant: vitrail.Assistant) -> None:
    """Ctrl-C ends the reading at the next chunk."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threads, chunks = threading.active_count(), []

    def progress(done: int, total: int) -> None:
        chunks.append(done)
        if len(chunks) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    try:
        with pytest.raises(KeyboardInterrupt):
            next(assistant.stream(None, "word " * 300, prefill_chunk_size=16, progress=progress))
    finally:
        signal.signal(signal.SIGINT, before)
    assert threading.active_count() == threads
    assert len(chunks) < 5


def test_chat_goes_on(assistant: vitrail.Assistant) -> None:
    dialogue = assistant.chat(system="Be brief.")
    assert isinstance(dialogue, vitrail.Dialogue)
    first = dialogue.ask("Hello.", max_new_tokens=LENGTH)
    second = dialogue.ask("And?", max_new_tokens=LENGTH)
    assert second.reused >= first.prompt_tokens
    assert dialogue.messages[0] == {"role": "system", "content": "Be brief."}
    again = assistant.chat(dialogue.messages)
    assert again.prompt_ids() == dialogue.prompt_ids()


def test_read_gives_what_the_batch_reader_gives(reader: vitrail.Assistant, tmp_path: Path) -> None:
    """Folders are searched; a file that is no image has an error, and the others are read."""
    shutil.copy(SIGN, tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (broken, nothing), (name, reading) = reader.read(tmp_path)
    assert (broken, name) == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert nothing.error is not None and (nothing.pages, nothing.text) == ((), "")
    (own,) = BatchReader().read([load_image(SIGN)])
    assert (reading.text, reading.pages[0].confidence) == (TEXT, own.confidence)
    with pytest.raises(vitrail.InputError, match="no file fits"):
        reader.read(str(tmp_path / "*.tif"))


def test_load_dtype_quantization_and_adapter(tiny_llava: Path, tmp_path: Path) -> None:
    assert vitrail.load(tiny_llava, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    packed = vitrail.load(tiny_llava, quantization="nf4")
    kinds = {type(module).__name__ for module in packed.model.modules()}
    assert "QuantLinear" in kinds
    plain = vitrail.load(tiny_llava)
    plain.model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    plain.model.save_adapter(tmp_path / "adapter")
    with_adapter = vitrail.load(tiny_llava, adapter=tmp_path / "adapter")
    assert any("Lora" in type(module).__name__ for module in with_adapter.model.modules())


def test_load_a_checkpoint_that_reads_text_only(tiny_llava: Path, tmp_path: Path) -> None:
    config = vitrail.AutoConfig.from_pretrained(tiny_llava).text_config
    tiny.randomize(vitrail.MistralForCausalLM(config)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llava / name, tmp_path)
    assistant = vitrail.load(tmp_path)
    assert type(assistant.model).__name__ == "MistralForCausalLM"
    assert assistant.ask(None, "Hello.", max_new_tokens=LENGTH).completion_tokens
    with pytest.raises(vitrail.PromptError, match="text only"):
        assistant.ask(tiny.image(9, 9), QUESTION)
    with pytest.raises(vitrail.InputError, match="text only"):
        assistant.read(SIGN)


def test_names_of_0_1_0_import_and_warn_once() -> None:
    """vitrail.Turn is vitrail.Reply; hear= is on_event=."""
    code = "import vitrail\nfrom vitrail import Turn\nassert Turn is vitrail.Turn is vitrail.Reply\n"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("vitrail.Turn is called vitrail.Reply now") == 1


def test_hear_is_on_event_and_warns(assistant: vitrail.Assistant) -> None:
    heard: list[Any] = []
    with pytest.warns(DeprecationWarning, match="hear= is called on_event= now") as noted:
        reply = assistant.chat().ask("Hello.", hear=heard.append, max_new_tokens=LENGTH)
    assert "".join(piece.text for piece in heard if isinstance(piece, TextDelta)) == reply.text
    assert [Path(warning.filename) for warning in noted] == [Path(__file__)]


def test_on_prompt_sees_the_size_before_the_prompt_is_read(assistant: vitrail.Assistant) -> None:
    calls: list[Any] = []
    reply = assistant.ask(
        tiny.image(60, 90),
        QUESTION,
        on_prompt=calls.append,
        progress=lambda *_: calls.append("read"),
        max_new_tokens=1,
    )
    size = vitrail.PromptSize(reply.prompt_tokens, reply.image_tokens, ((70, 98),))
    assert calls[0] == size
    assert "read" in calls[1:]
