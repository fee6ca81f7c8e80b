"""Every spelling of a conversation becomes the same messages; faults are named with their place."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vitrail.errors import PromptError
from vitrail.prompts.builtin.build import build_prompt
from vitrail.prompts.messages import (
    ImagePart,
    Message,
    TextPart,
    ThinkPart,
    images,
    normalize,
    normalize_batch,
)

IMAGE = Image.new("RGB", (4, 4))


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "hi"},
        {"type": "text", "content": "hi"},
        {"type": "text", "text": "hi", "content": "hi"},
        {"type": "input_text", "text": "hi"},
        "hi",
        SimpleNamespace(type="text", text="hi"),
    ],
)
def test_text_spellings(part: Any) -> None:
    assert normalize(user(part)) == [Message("user", (TextPart("hi"),))]


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image"}, None),
        ({"type": "image", "image": None}, None),
        ({"type": "image", "image": IMAGE}, IMAGE),
        ({"type": "image", "url": "https://a.b/c.png"}, "https://a.b/c.png"),
        ({"type": "image", "path": "/a/b.png"}, "/a/b.png"),
        ({"type": "image", "base64": "AAAA"}, "data:image/png;base64,AAAA"),
        ({"type": "image", "base64": "data:image/jpeg;base64,AAAA"}, "data:image/jpeg;base64,AAAA"),
        ({"type": "image_url", "image_url": "https://a.b/c.png"}, "https://a.b/c.png"),
        ({"type": "image_url", "image_url": {"url": "x.png"}}, "x.png"),
        ({"type": "input_image", "image_url": "x.png"}, "x.png"),
        (SimpleNamespace(type="image", image=IMAGE), IMAGE),
        (SimpleNamespace(type="image_url", image_url=SimpleNamespace(url="x.png")), "x.png"),
    ],
)
def test_image_spellings(part: Any, source: Any) -> None:
    messages = normalize(user(part, {"type": "text", "text": "?"}))
    assert images(messages) == [ImagePart(source)]


def test_extras_are_kept() -> None:
    raw = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "x"}, "detail": "low"}],
        "mood": 1,
    }
    message = normalize([raw])[0]
    assert message.extra == {"mood": 1}
    assert message.images[0].extra == {"detail": "low"}


def test_whole_conversations() -> None:
    one = [Message("user", "hi")]
    assert normalize("hi") == one
    assert normalize({"role": "user", "content": "hi"}) == one
    assert normalize(SimpleNamespace(messages=[{"role": "user", "content": "hi"}])) == one
    assert normalize(one) == one
    assert normalize_batch("hi") == ([one], False)
    assert normalize_batch([[{"role": "user", "content": "hi"}], one]) == ([one, one], True)


def test_tool_turns() -> None:
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = normalize(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "22", "tool_call_id": "abcdefgh1", "name": "f"},
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "closed": False}, "so"]},
        ]
    )
    assert messages[0] == Message("assistant", None, (call,))
    assert messages[1] == Message("tool", "22", tool_call_id="abcdefgh1", name="f")
    assert messages[2].role == "developer"
    assert messages[3].content == (ThinkPart("hm", closed=False), TextPart("so"))


@pytest.mark.skipif(
    importlib.util.find_spec("mistral_common") is None,
    reason="mistral_common is not installed: pip install -e '.[test]'",
)
def test_objects_of_mistral_common() -> None:
    from mistral_common.protocol.instruct.messages import (
        AssistantMessage,
        ImageChunk,
        ImageURLChunk,
        SystemMessage,
        TextChunk,
        ToolMessage,
        UserMessage,
    )
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall

    call = ToolCall(id="abcdefgh1", function=FunctionCall(name="f", arguments="{}"))
    request = ChatCompletionRequest(
        messages=[
            SystemMessage(content="s"),
            UserMessage(
                content=[TextChunk(text="a"), ImageChunk(image=IMAGE), ImageURLChunk(image_url="x.png")]
            ),
            AssistantMessage(content=None, tool_calls=[call]),
            ToolMessage(content="r", tool_call_id="abcdefgh1", name="f"),
            AssistantMessage(content="t", prefix=True),
        ]
    )
    messages = normalize(request)
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[1].content == (TextPart("a"), ImagePart(IMAGE), ImagePart("x.png"))
    assert messages[2].tool_calls[0]["function"] == {"name": "f", "arguments": "{}"}
    assert messages[3].tool_call_id == "abcdefgh1"
    assert messages[4].extra == {"prefix": True}


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ([], "at least one message"),
        (7, "expected a list of messages, got int"),
        ([{"role": "user", "content": "a"}, 3], r"messages\[1\]: expected a mapping"),
        ([{"content": "a"}], r"messages\[0\]: expected a mapping with 'role'"),
        ([{"role": "wizard", "content": "a"}], r"messages\[0\].role: .*wizard"),
        ([{"role": "user"}], r"messages\[0\].content: .*nothing"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content: .*int 3"),
        (user("a", {"text": "b"}), r"messages\[0\].content\[1\]: expected a part with a 'type'"),
        (user({"type": "video", "url": "x"}), r"content\[0\].type: .*video"),
        (user({"type": "text"}), r"content\[0\]: a text part needs its text"),
        (user({"type": "text", "text": 3}), r"content\[0\].text: expected a text"),
        (user({"type": "text", "text": "a", "content": "b"}), "different things"),
        (user({"type": "image", "url": "a", "path": "b"}), "several sources"),
        (user({"type": "image_url"}), "needs 'image_url'"),
        (user({"type": "image_url", "image_url": {}}), "expected a text or"),
        (user({"type": "image", "base64": b"AA"}), "base64: expected a text"),
        ([{"role": "assistant", "content": None}], "nothing"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}], r"tool_calls\[0\]"),
        ([{"role": "tool", "content": "a", "tool_call_id": 3}], "tool_call_id: expected a text"),
        ([{"role": "assistant", "content": [{"type": "thinking", "thinking": 3}]}], "thinking: expected"),
    ],
)
def test_faults_are_placed(conversation: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        normalize(conversation)


def test_faults_in_a_batch_are_placed() -> None:
    with pytest.raises(PromptError, match=r"conversation 1: messages\[0\].content"):
        normalize_batch([user("a"), [{"role": "user", "content": 3}]])


def test_what_an_error_shows_of_a_value_has_a_bound() -> None:
    for message in (
        {"role": "x" * 1_000_000, "content": "a"},
        {"role": "user", "content": [{"type": "y" * 1_000_000}]},
        {"role": "assistant", "tool_calls": [{"id": 3, "type": "z" * 1_000_000, "function": {"name": "f"}}]},
    ):
        with pytest.raises(PromptError) as caught:
            build_prompt([message], "v7")
        assert len(str(caught.value)) < 11_000
