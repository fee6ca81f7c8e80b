"""Random conversations in every built-in format: the ids and the refusals of mistral-common itself.

The same ids are demanded of its files as tokenizer.json (tests/convert.py), from all of these conversations.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings, strategies as st
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.messages import FinetuningAssistantMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image

from tests.conversations import MARKERS, WORDS, Conversation, Writer
from tests.convert import json_tokenizer
from tests.prompts import VERSIONS, build, tokenizer
from vitrail.errors import PromptError
from vitrail.prompts.builtin import encode_prompt, fim_prompt, fit_prompt
from vitrail.prompts.builtin.schema import check_schema
from vitrail.prompts.messages import ROLES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONVERSATIONS, PARTS = 2000, 4


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("version", VERSIONS)
def test_like_mistral_common(version: str, part: int) -> None:
    writer = Writer(version, part)
    accepted = sum(same(version, writer.conversation()) for _ in range(CONVERSATIONS // PARTS))
    assert accepted > CONVERSATIONS // PARTS // 3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(draws=st.randoms(use_true_random=False))
@pytest.mark.parametrize("version", VERSIONS)
def test_smallest_difference(version: str, draws: random.Random) -> None:
    """The same with hypothesis at the dice: a conversation that differs is reduced to the smallest one that does."""
    writer = Writer(version, 0)
    writer.random = draws
    same(version, writer.conversation())


def test_what_the_conversations_say() -> None:
    """Every word of every language and every marker is in one of them, and every role."""
    writers = [Writer("v13", part) for part in range(PARTS)]
    said = json.dumps(
        [writer.conversation() for writer in writers for _ in range(CONVERSATIONS // PARTS)],
        ensure_ascii=False,
    )
    parts = [*WORDS, *MARKERS, *ROLES]
    assert [part for part in parts if json.dumps(part, ensure_ascii=False)[1:-1] not in said] == []


@pytest.mark.parametrize("version", ["v7", "v7m1", "v7-tekken", "v11", "v13", "v15"])
def test_truncation_like_mistral_common(version: str) -> None:
    writer = Writer(version, 99)
    tried = 0
    while tried < 60:
        conversation = writer.conversation()
        whole, _ = theirs(version, conversation)
        if whole is None or len(whole) < 8:
            continue
        tried += 1
        limit = writer.random.randint(3, len(whole))
        expected, why = theirs(version, conversation, limit)
        found, reason = ours(version, conversation, limit)
        assert found == expected, (conversation, limit, why, reason)


@pytest.mark.parametrize("mode", ["finetuning", "agnostic"])
@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7", "v11", "v13", "v15"])
def test_modes_like_mistral_common(version: str, mode: str) -> None:
    """Conversations that end with an answer, as in training; calls of the last message may have no id."""
    writer = Writer(version, 41)
    for _ in range(150):
        conversation = writer.conversation()
        if conversation["messages"] and writer.random.random() < 0.7:
            conversation["messages"].append({"role": "assistant", "content": writer.text()})
            conversation["continue_final_message"] = False
        last = conversation["messages"][-1:]
        if last and last[0].get("tool_calls") and writer.random.random() < 0.5:
            last[0]["tool_calls"][-1].pop("id", None)
        expected, why = theirs(version, conversation, mode=mode)
        found, reason = ours(version, conversation, mode=mode)
        assert found == expected, (conversation, why, reason)


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_keep_answers_apart_like_mistral_common(version: str) -> None:
    """Neighbouring answers with the weights 0, 1 and none, as mistral-common's fine-tuning messages have them."""
    writer = Writer(version, 43)
    accepted = 0
    for _ in range(200):
        conversation = writer.conversation()
        conversation["continue_final_message"] = False
        for place in [at for at, m in enumerate(conversation["messages"]) if m["role"] == "assistant"][::-1]:
            added = [
                {"role": "assistant", "content": writer.text()} for _ in range(writer.random.randint(0, 2))
            ]
            conversation["messages"][place + 1 : place + 1] = added
        weights = {
            place: writer.random.choice((0, 1, None))
            for place, message in enumerate(conversation["messages"])
            if message["role"] == "assistant"
        }
        expected, why = theirs(version, conversation, mode="agnostic", weights=weights)
        for place, weight in weights.items():
            conversation["messages"][place]["weight"] = weight
        found, reason = ours(version, conversation, mode="agnostic")
        assert found == expected, (conversation, why, reason)
        accepted += found is not None and len(set(weights.values())) > 1
    assert accepted > 20


@pytest.mark.parametrize("version", ["v3", "v3-tekken", "v7", "v7-tekken", "v11"])
def test_fim_like_mistral_common(version: str) -> None:
    writer = Writer(version, 7)
    for _ in range(200):
        prompt, suffix = writer.text(), writer.random.choice((writer.text(), writer.text(), "", None))
        request: Any = FIMRequest(prompt=prompt, suffix=suffix)
        expected = tokenizer(version).tokenizer.encode_fim(request).tokens
        made = fim_prompt(prompt, suffix, format=version)
        for model in (tokenizer(version), json_tokenizer(version)):
            assert encode_prompt(made, model.encoder) == expected, (prompt, suffix, type(model))


VALUES: tuple[Any, ...] = (
    *(True, False, None, 0, 1, -1, 1.0, 1.5, 0.0, "a", "(", "object", "nope", [], ["a"], ["a", "a"], [1]),
    *(["string", "null"], ["string", "string"], {}, {"type": "string"}, {"type": 3}, {"a": {}}, {"a": 3}),
    *([{}], [{}, True], [3], {"a": ["b"]}, {"(": {}}, {"a": ["b", "b"]}, {"a": {"type": "x"}}, float("nan")),
)


def test_schemas_like_jsonschema() -> None:
    """Every keyword of draft 7 with values of every kind, alone and inside a property."""
    keywords = [*sorted(jsonschema.Draft7Validator.META_SCHEMA["properties"]), "unknown"]
    for keyword, value in itertools.product(keywords, VALUES):
        for schema in ({keyword: value}, {"properties": {"p": {"items": {keyword: value}}}}):
            try:
                jsonschema.Draft7Validator.check_schema(schema)
                good = True
            except jsonschema.exceptions.SchemaError:
                good = False
            try:
                check_schema(schema, "parameters")
                found = True
            except PromptError:
                found = False
            assert found == good, schema


def same(version: str, conversation: Conversation) -> bool:
    """Compare the ids, or the refusals, of both; also those of the tokenizer.json. Whether it was accepted."""
    expected, why = theirs(version, conversation)
    found, reason = ours(version, conversation)
    assert found == expected, (conversation, why, reason)
    if expected is not None:
        prompt, _ = build(conversation, version)
        assert encode_prompt(prompt, json_tokenizer(version).encoder) == expected, conversation
    return expected is not None


def ours(
    version: str, conversation: Conversation, limit: int | None = None, mode: str = "test"
) -> tuple[list[int] | None, str]:
    try:
        prompt, _ = build(conversation, version, mode=mode)
        encoder = tokenizer(version).encoder
        return encode_prompt(prompt if limit is None else fit_prompt(prompt, encoder, limit), encoder), ""
    except PromptError as error:
        return None, str(error)


def theirs(
    version: str,
    conversation: Conversation,
    limit: int | None = None,
    mode: str = "test",
    weights: Mapping[int, int | None] | None = None,
) -> tuple[list[int] | None, str]:
    given = {name: conversation[name] for name in ("tools", "continue_final_message")}
    if conversation["reasoning_effort"] is not None:
        given["reasoning_effort"] = conversation["reasoning_effort"]
    if limit is not None:
        given["truncate_for_context_length"] = True
    mistral = oracle(version, mode)
    try:
        request: Any = ChatCompletionRequest.from_openai(opened(conversation["messages"]), **given)
        for place, weight in (weights or {}).items():
            fields = dict(request.messages[place])
            request.messages[place] = FinetuningAssistantMessage(**fields | {"weight": weight})
        return list(mistral.encode_chat_completion(request, max_model_input_len=limit).tokens), ""
    except Exception as error:  # its errors share no base
        return None, f"{type(error).__name__}: {error}"


@functools.cache
def oracle(version: str, mode: str) -> Any:
    """mistral-common's own tokenizer in a mode; the modes of a version share what its file says."""
    mistral = tokenizer(version).tokenizer
    validator = get_validator(mistral.instruct_tokenizer.tokenizer.version, ValidationMode(mode))
    return MistralTokenizer(mistral.instruct_tokenizer, validator, mistral._instruct_request_normalizer)


def opened(value: Any) -> Any:
    """Messages with a real image for each `size:WxH`."""
    if isinstance(value, str) and value.startswith("size:"):
        return data_url(value)
    if isinstance(value, list):
        return [opened(item) for item in value]
    if isinstance(value, dict):
        return {key: opened(item) for key, item in value.items()}
    return value


@functools.cache
def data_url(size: str) -> str:
    width, height = map(int, size[5:].split("x"))
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
