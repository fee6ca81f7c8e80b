"""The prompt that the Pixtral Large card prints, from messages, in the built-in format "card"."""

from __future__ import annotations

import json
import re

from tests import tiny
from tests.contract import snippets
from vitrail.prompts.builtin import build_prompt

TOOL = {"name": "draw", "description": "Draws.", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "draw", "arguments": '{"what": "a cat"}'}}


def printed() -> str:
    """The card's example without the line breaks that it added for readability."""
    text = snippets.document("pixtral_large")
    return "".join(text[text.index("<s>") :].splitlines())


def test_the_cards_example_is_what_its_messages_give() -> None:
    image = {"type": "image", "image": tiny.image(16, 16)}
    results = "<tool results including images>"
    conversation = [
        {"role": "system", "content": "<system prompt>"},
        {"role": "user", "content": [image, {"type": "text", "text": "<user message>"}]},
        {
            "role": "assistant",
            "content": [image, {"type": "text", "text": "<assistant response>"}],
            "tool_calls": [CALL],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": results},
        {"role": "user", "content": "<user message>"},
    ]
    prompt = str(build_prompt(conversation, "card", tools=[{"type": "function", "function": TOOL}]))
    definitions = between(prompt, "AVAILABLE_TOOLS")
    calls = between(prompt, "TOOL_CALLS")
    assert json.loads(definitions) == [{"type": "function", "function": TOOL}]
    (call,) = json.loads(calls)
    assert call["name"] == "draw" and call["arguments"] == {"what": "a cat"}
    shown = prompt.replace(definitions, "[<tool definitions>]").replace(calls, "[<tool calls>]")
    assert shown == printed()


def test_images_everywhere_and_several_users_in_a_row() -> None:
    """System prompts anywhere, [INST] for each of several user turns, images in results and answers."""
    image = {"type": "image", "image": tiny.image(16, 16)}
    conversation = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}, image]},
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": [image, {"type": "text", "text": "three"}]},
        {"role": "user", "content": "four"},
    ]
    prompt = build_prompt(conversation, "card")
    assert str(prompt) == (
        "<s>[INST] one[/INST][INST] two[IMG][/INST][SYSTEM_PROMPT] be brief[/SYSTEM_PROMPT]"
        "[IMG]three</s>[INST] four[/INST]"
    )
    assert len(prompt.images) == 2


def between(prompt: str, name: str) -> str:
    (found,) = re.findall(rf"\[{name}\] (.*?)\[/{name}\]", prompt)
    return found
