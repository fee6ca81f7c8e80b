"""What images may be opened from: every way in which a message or a call names a file or an address."""

from __future__ import annotations

import importlib.util
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitrail
from tests import tiny
from vitrail import FetchPolicy, ImageError, image_request, load_image, load_pages
from vitrail.cli.images import open_parts
from vitrail.images.request import set_image_defaults
from vitrail.processor.prepared import PreparedImage


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(tiny.image(10, 12))


# What may be opened


@pytest.fixture(scope="module")
def assistant(tiny_mistral3: Path) -> vitrail.Assistant:
    return vitrail.load(tiny_mistral3)


def _messages(**source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [source, {"type": "text", "text": "Read."}]}]


def _template(assistant: vitrail.Assistant, messages: Any) -> Any:
    return assistant.processor.apply_chat_template(messages, tokenize=True, return_dict=True)


WAYS: dict[str, Callable[[vitrail.Assistant, str], Any]] = {
    "load_image": lambda a, name: load_image(name),
    "load_pages": lambda a, name: load_pages(name),
    "processor": lambda a, name: a.processor(images=[name], text="[IMG]"),
    "image processor": lambda a, name: a.processor.image_processor([name]),
    "fast image processor": lambda a, name: vitrail.PixtralImageProcessorFast()([name]),
    "image": lambda a, name: _template(a, _messages(type="image", image=name)),
    "path": lambda a, name: _template(a, _messages(type="image", path=name)),
    "url": lambda a, name: _template(a, _messages(type="image", url=name)),
    "image_url": lambda a, name: _template(a, _messages(type="image_url", image_url={"url": name})),
    "input_image": lambda a, name: _template(a, _messages(type="input_image", image_url=name)),
    "file": lambda a, name: _template(a, _messages(type="file", path=name)),
    "document_url": lambda a, name: _template(a, _messages(type="document_url", document_url=name)),
    "text alone": lambda a, name: a.processor.apply_chat_template(_messages(type="file", path=name)),
    "ask": lambda a, name: a.ask(name, "Read.", max_new_tokens=1),
    "stream": lambda a, name: list(a.stream(name, "Read.", max_new_tokens=1)),
    "chat": lambda a, name: a.chat(_messages(type="image", image=name)),
    "attach": lambda a, name: a.chat().attach({"type": "file", "path": name}),
    "read": lambda a, name: list(a.read(name)),
    "pipeline": lambda a, name: vitrail.pipeline(model=a.model, processor=a.processor)(
        text=_messages(type="image", image=name), max_new_tokens=1
    ),
    "pipeline's images": lambda a, name: vitrail.pipeline(model=a.model, processor=a.processor)(
        images=name, text="[IMG]", max_new_tokens=1
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_honours_the_policy(way: str, assistant: vitrail.Assistant, tmp_path: Path) -> None:
    """Files and addresses, for each spelling of a message and each name of an image."""
    file = tmp_path / "sign.png"
    file.write_bytes(PNG)
    names = [str(file), file.as_uri(), "http://127.0.0.1:9/a.png", "https://169.254.169.254/latest/a.png"]
    for name in names:
        with (
            image_request(policy=FetchPolicy.untrusted()),
            pytest.raises(ImageError, match=r"not opened|not fetched"),
        ):
            WAYS[way](assistant, name)
    public = FetchPolicy(allow_files=False, allow_private=False)
    with image_request(policy=public), pytest.raises(ImageError, match=r"not opened here|not public"):
        WAYS[way](assistant, "http://127.0.0.1:9/a.png")


def test_stream_that_is_read_outside_its_block_honours_the_policy(
    assistant: vitrail.Assistant, tmp_path: Path
) -> None:
    (tmp_path / "sign.png").write_bytes(PNG)
    with image_request(policy=FetchPolicy.untrusted()):
        stream = assistant.stream(tmp_path / "sign.png", "Read.", max_new_tokens=1)
    with pytest.raises(ImageError, match="Local files are not opened"):
        next(stream)


def test_defaults_hold_in_every_thread(tmp_path: Path) -> None:
    (tmp_path / "sign.png").write_bytes(PNG)
    found: list[str] = []

    def work() -> None:
        try:
            load_image(tmp_path / "sign.png")
        except ImageError as error:
            found.append(str(error))

    set_image_defaults(policy=FetchPolicy.untrusted())
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        set_image_defaults()
    assert found == ["Local files are not opened here; send the image as a data URL."]
    work()
    assert len(found) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_asking_about_a_pipe_does_not_wait(assistant: vitrail.Assistant, tmp_path: Path) -> None:
    """What a file holds is looked at before it is opened as an image."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no regular file"):
        assistant.ask(tmp_path / "pipe", "Read.")


@pytest.fixture(scope="module")
def tekken() -> Any:
    """The published tokenizer of Pixtral."""
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        pytest.skip("mistral_common is not installed: pip install -e '.[test]'")
    return vitrail.MistralCommonTokenizer(Path(found.origin).parent / "data" / "tekken_240911.json")


@pytest.mark.parametrize("options", [{}, {"format": "auto"}, {"format": "auto", "tokenize": False}])
@pytest.mark.parametrize("kind", ["image_url", "file"])
def test_tokenizers_of_mistral_common_honour_the_policy(
    options: dict[str, Any], kind: str, tekken: Any, tmp_path: Path
) -> None:
    file = tmp_path / "sign.png"
    file.write_bytes(PNG)
    for name in (file.as_uri(), "http://127.0.0.1:9/a.png"):
        source = {"image_url": {"url": name}} if kind == "image_url" else {"url": name}
        if kind == "image_url" and options.get("tokenize") is False:
            continue  # a text names no source and opens none
        with (
            image_request(policy=FetchPolicy.untrusted()),
            pytest.raises(ImageError, match=r"not opened|not fetched"),
        ):
            tekken.apply_chat_template(_messages(type=kind, **source), **options)


def test_command_line_keeps_some_pixels_and_opens_the_rest_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are opened before a model is; eight photographs are not held at full size."""
    names = []
    for number in range(3):
        tiny.image(20, 30).save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    monkeypatch.setattr("vitrail.cli.images._KEPT_PIXELS", 700)
    parts = open_parts(names)
    assert [sorted(part) for part in parts] == [["image", "type"], ["path", "type"], ["path", "type"]]
    assert [part["path"] for part in parts[1:]] == names[1:]
    with pytest.raises(ImageError, match="There is no file"):
        open_parts([*names, str(tmp_path / "absent.png")])


def test_conversation_keeps_no_image_that_is_larger_than_what_the_model_reads(
    assistant: vitrail.Assistant,
) -> None:
    """The pixels are the same each time they are asked for, whichever of the two is kept."""
    for image in (tiny.image(600, 900), tiny.image(30, 40)):
        prepared = PreparedImage(assistant.processor, image, {})
        first, again = prepared.pixels(), prepared.pixels()
        assert torch.equal(first, again)
        assert (prepared._image is None) == (first.nbytes <= 4 * image.width * image.height)
