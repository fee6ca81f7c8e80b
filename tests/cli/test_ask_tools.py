"""`vitrail ask --tools`, and answers that reason and call: what is shown where. The answers are scripted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests.toy import ToyModel
from vitrail import assistant
from vitrail.cli.main import main
from vitrail.model import estimate
from vitrail.tokenizer.fast import FastTokenizer

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
TEMPLATE = (
    "{{ bos_token }}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "[INST]{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}[/INST]"
)


class Scripted(ToyModel):
    """A model that answers with given ids."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        super().__init__(vocabulary, image=None)
        self.ids = ids
        self.given = 0
        self.prompt: list[int] = []

    def embed(self, ids: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        self.prompt += [] if self.given else ids.tolist()
        return super().embed(ids, features)

    def step(self, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = torch.zeros_like(super().step(hidden, *rest))
        if len(logits):
            logits[-1, self.ids[self.given]] = 1
            self.given += 1
        return logits


@pytest.fixture
def scripted(tiny_mistral3: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """script(part, …) → the model that answers with these control tokens and texts, and its tokenizer."""
    processor = vitrail.AutoProcessor.from_pretrained(tiny_mistral3)
    tokenizer: FastTokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ARGS]", "[THINK]", "[/THINK]"]})
    processor.chat_template = TEMPLATE

    def script(*parts: str) -> Scripted:
        ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)]
        model = Scripted(ids, len(tokenizer))
        monkeypatch.setattr(assistant, "load", lambda *_, **__: assistant.Assistant(model, processor))
        monkeypatch.setattr(estimate, "estimate", lambda *_: None)  # it has no weights to count
        return model

    script.tokenizer = tokenizer  # type: ignore[attr-defined]
    script.processor = processor  # type: ignore[attr-defined]
    return script


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A file with one tool."""
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return str(path)


def test_calls_follow_the_text_and_reasoning_goes_to_stderr(
    scripted: Any, tools: str, tiny_mistral3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One call on a line; nothing of the reasoning on stdout."""
    model = scripted(
        "[THINK]",
        "Hm.",
        "[/THINK]",
        "Let me see.",
        "[TOOL_CALLS]",
        "get_weather",
        "[ARGS]",
        '{"a": 1}',
        "</s>",
    )
    assert main(["ask", "Weather?", "--model", str(tiny_mistral3), "--tools", tools]) == 0
    out, err = capsys.readouterr()
    assert out == 'Let me see.\nget_weather({"a": 1})\n'
    assert err == "Hm.\n"
    assert '"name": "get_weather"' in scripted.tokenizer.decode(model.prompt)


def test_json_has_calls_in_openais_shape(
    scripted: Any, tools: str, tiny_mistral3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With reasoning and faults beside them."""
    call = '[{"name": "get_weather", "arguments": {oops}, "id": "abcdefgh1"}]'
    scripted("[THINK]", "Hm.", "[/THINK]", "[TOOL_CALLS]", call, "</s>")
    assert main(["ask", "Weather?", "--model", str(tiny_mistral3), "--tools", tools, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["reasoning"]) == ("", "Hm.")
    function = {"name": "get_weather", "arguments": "{oops}"}
    assert record["tool_calls"] == [{"id": "abcdefgh1", "type": "function", "function": function}]
    assert record["faults"] == ["the arguments of call 0 are not JSON"]


def test_broken_calls_are_told(
    scripted: Any, tiny_mistral3: Path, tools: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with the arguments shown as they came."""
    scripted("[TOOL_CALLS]", "get_weather", "[ARGS]", "{oops", "</s>")
    assert main(["ask", "Weather?", "--model", str(tiny_mistral3), "--tools", tools]) == 0
    out, err = capsys.readouterr()
    assert out == "get_weather({oops)\n"
    assert "arguments of call 0 are not JSON" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "expected a list of tools"),
        ('[{"type": "function"}]', "tools[0].function"),
        ('[{"type": "function", "function": {"name": "no spaces"}}]', "tools[0].function.name"),
    ],
)
def test_wrong_tools_are_told_before_a_model_is_loaded(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the place of the fault."""
    path = tmp_path / "tools.json"
    path.write_text(content)
    assert main(["ask", "Weather?", "--model", "nowhere", "--tools", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert main(["ask", "Weather?", "--model", "nowhere", "--tools", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_pipeline_tells_reasoning_and_calls(scripted: Any) -> None:
    """Records of structured answers have more keys; the conversation goes on with them."""
    ids = scripted("[THINK]", "Hm.", "[/THINK]", "Yes.", "[TOOL_CALLS]", "f", "[ARGS]", "{}", "</s>").ids

    class Model(torch.nn.Module):
        """What a pipeline asks of a model."""

        device, dtype = torch.device("cpu"), torch.float32
        generation_config = vitrail.GenerationConfig(max_new_tokens=9)

        def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    pipe = vitrail.ImageTextToTextPipeline(Model(), scripted.processor)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    (record,) = pipe(text=messages, tools=TOOLS, return_full_text=False)
    assert (record["generated_text"], record["reasoning"], record["faults"]) == ("Yes.", "Hm.", [])
    assert record["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    (record,) = pipe(text=messages, tools=TOOLS)
    last = record["generated_text"][-1]
    assert (last["content"], last["reasoning"], len(last["tool_calls"])) == ("Yes.", "Hm.", 1)
    with pytest.raises(vitrail.InputError, match="belong to messages"):
        pipe(text="[INST]a[/INST]", tools=TOOLS)
