"""Random conversations for the property tests of prompt formats: mostly good, some with one thing wrong. No tests."""

from __future__ import annotations

import json
import random
import string
from typing import Any

WORDS = (
    *("the image", "What's shown here?", "it's", "row 3.14", "e-mail@example.org", "x=y", "GPU", "no,"),
    *("Décrivez cette image,", "s'il vous plaît", "naïve façade", "Größe und Übersicht", "straße", "Ärger"),
    *("¿Qué hay aquí, señor?", "mañana", "Perché l'immagine è così?", "però", "Não há ninguém;", "descrição"),
    *(
        "这张图片里有什么？",
        "请描述一下",
        "画像を説明してください。",
        "これは何ですか",
        "Опишите картинку.",
        "щука",
    ),
    *("이 그림을 설명해 주세요.", "무엇입니까", "ما في هذه الصورة؟", "तस्वीर का वर्णन"),
    *(
        "(╯°□°)╯︵ ┻━┻",
        "🙂👩‍👩‍👧",
        "ﬁ Ⅷ ½ ①",
        "ＦＵＬＬ",
        "e\u0301",
        "\u00a0nbsp",
        "zero\u200bwidth\ufeff",
        "▁",
        "☺",
    ),
    *(
        "\n",
        "\n\n",
        "  ",
        "\t\ttab",
        " ",
        "   ",
        "a\r\nb\rc",
        "\x00\x01\x1b[0m",
        "```py\nx = 1\n```",
        "<b>&amp;</b>",
    ),
    *("12345678901234567890", "1.50", '{"temp":  22}', "[1, null]", '{"open": ', '"text"', "1e3", "NaN"),
)
MARKERS = (
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "[INST]",
        "[/INST]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[TOOL_CALLS]",
    ),
    *(
        "[/TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[ARGS]",
    ),
    *(
        "[CALL_ID]",
        "[TOOL_CONTENT]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[THINK]",
        "[/THINK]",
        "[PREFIX]",
    ),
    *(
        "[SUFFIX]",
        "[MIDDLE]",
        "[MODEL_SETTINGS]",
        "<SPECIAL_20>",
        "[control_17]",
        "[REF]",
        "[/REF]",
        "<0x0A>",
    ),
    "[REFERENCE_DOC_3]",
)
ARGUMENTS: tuple[Any, ...] = (
    *(
        "{}",
        "",
        '{"x": 1}',
        '{"x": 1e3, "x": 1.50, "y": "\\u00e9"}',
        "[1, 2]",
        "null",
        "not json",
        '{"open": ',
    ),
    *({}, {"k": "é", "n": [1, None, True, 0.5]}, {"big": 10**30}, None, "true", '{"a": NaN}'),
)
NAMES = ("f", "get_weather", "F_1", "make-image", "x" * 64)
Conversation = dict[str, Any]


class Writer:
    """Writes conversations for one version: where it takes images and thinking, and how its ids look."""

    def __init__(self, version: str, seed: int) -> None:
        self.version = version
        self.random = random.Random(f"{version} {seed}")
        self.images = version not in ("v1", "v2", "v3", "v7")
        self.thinks = version in ("v13", "v15")
        self.free_ids = version in ("v1", "v2", "v13", "v15")

    def conversation(self) -> Conversation:
        """messages, tools, continue_final_message and reasoning_effort; about one in three is refused somewhere."""
        r = self.random
        messages = self._good_messages()
        tools = self._tools() if self._maybe(0.4) else None
        effort = (
            r.choice(("none", "high", "low")) if self._maybe(0.3 if self.version == "v15" else 0.02) else None
        )
        if self._maybe(0.25):
            self._spoil(messages)
        last_is_answer = bool(messages) and messages[-1].get("role") == "assistant"
        continues = last_is_answer if self._maybe(0.97) else not last_is_answer
        return {
            "messages": messages,
            "tools": tools,
            "continue_final_message": continues,
            "reasoning_effort": effort,
        }

    def text(self) -> str:
        """A text of a few words of any language, sometimes empty, sometimes with markers."""
        words = [self.random.choice(MARKERS if self._maybe(0.12) else WORDS) for _ in range(self._number(4))]
        joined = self.random.choice(("", " ", " ")).join(words)
        return joined + self.random.choice(("", "", "", " ", "   ", "\n"))

    def _good_messages(self) -> list[dict[str, Any]]:
        messages = [self._system() for _ in range(self.random.choice((0, 0, 1, 1, 2)))]
        for _ in range(1 + self._number(3)):
            for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                messages.append({"role": "user", "content": self._content("user")})
                if self._maybe(0.1):
                    messages += [self._system(), {"role": "user", "content": self._content("user")}]
            messages += self._answer()
        while self._maybe(0.6) and messages[-1]["role"] == "assistant" and len(messages) > 1:
            messages.pop()
        return messages

    def _answer(self) -> list[dict[str, Any]]:
        exclusive = self.version in ("v1", "v2", "v3", "v3-tekken")
        messages: list[dict[str, Any]] = []
        if self.version != "v1" and self._maybe(0.45):
            calls = [self._call() for _ in range(1 if self.version == "v2" else 1 + self._number(3))]
            message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
            if not exclusive and self._maybe(0.4):
                message["content"] = self._content("assistant")
            elif self._maybe(0.3):
                message["content"] = self.random.choice((None, ""))
            messages.append(message)
            results = [self._result(call) for call in calls]
            if self._maybe(0.4):
                self.random.shuffle(results)
            messages += results
            if self._maybe(0.2):
                return messages
        for _ in range(self.random.choice((1, 1, 1, 2))):
            message = {"role": "assistant", "content": self._content("assistant") or "ok"}
            if self.thinks and self._maybe(0.2) and isinstance(message["content"], str):
                message[self.random.choice(("reasoning", "reasoning_content"))] = self.text()
            messages.append(message)
        return messages

    def _system(self) -> dict[str, Any]:
        return {
            "role": self.random.choice(("system", "system", "developer")),
            "content": self._content("system"),
        }

    def _content(self, role: str) -> Any:
        if self._maybe(0.5):
            return self.text()
        return [self._part(role) for _ in range(self._number(5))]

    def _part(self, role: str) -> dict[str, Any]:
        shows = self.images and (role == "user" or (role == "tool" and self.version == "v15"))
        thinks = self.thinks and (role == "assistant" or (role == "system" and self.version == "v13"))
        if shows and self._maybe(0.45):
            return self._image()
        if thinks and self._maybe(0.3):
            part: dict[str, Any] = {"type": "thinking", "thinking": self.text()}
            return part | ({"closed": self._maybe(0.5)} if self._maybe(0.5) else {})
        return {"type": "text", "text": self.text()}

    def _image(self) -> dict[str, Any]:
        sides = (self.random.randint(1, 90), self.random.randint(1, 90))
        width, height = self.random.choice(
            ((2048, 33), (33, 2048), (3080, 57)) if self._maybe(0.02) else (sides,)
        )
        url = f"size:{width}x{height}"
        return {"type": "image_url", "image_url": url if self._maybe(0.2) else {"url": url}}

    def _call(self) -> dict[str, Any]:
        function = {"name": self.random.choice(NAMES), "arguments": self.random.choice(ARGUMENTS)}
        call = {"id": self._id(), "function": function}
        return call | ({"type": "function"} if self._maybe(0.8) else {})

    def _id(self) -> str:
        if self.free_ids and self._maybe(0.4):
            return self.random.choice(("call_1", "é zw9", "tool/x")) + str(self.random.random())
        return "".join(self.random.choices(string.ascii_letters + string.digits, k=9))

    def _result(self, call: dict[str, Any]) -> dict[str, Any]:
        content = self._content("tool")
        if self._maybe(0.3):
            content = json.dumps({"temp": 22.50, "é": [1, None]}, ensure_ascii=self._maybe(0.5))
        message = {"role": "tool", "tool_call_id": call["id"], "content": content}
        return message | ({"name": self.random.choice(NAMES)} if self._maybe(0.4) else {})

    def _tools(self) -> list[dict[str, Any]]:
        tools = []
        for _ in range(self._number(3)):
            function: dict[str, Any] = {"name": self.random.choice(NAMES)}
            schema = {"type": "object", "properties": {"g": {"type": "string", "description": self.text()}}}
            for key, values in (
                ("description", (None, "", self.text())),
                (
                    "parameters",
                    (None, {}, schema, schema | {"required": ["g"], "additionalProperties": False}),
                ),
                ("strict", (None, True)),
                ("extra", (1,)),
            ):
                if self._maybe(0.5):
                    function[key] = self.random.choice(values)
            tools.append(
                {"type": "function", "function": function} if self._maybe(0.9) else {"function": function}
            )
        if tools and self._maybe(0.1):
            bad = (
                {"type": "nope"},
                {"required": "g"},
                {"properties": []},
                {"pattern": "("},
                {"minItems": -1},
            )
            tools[0]["function"]["parameters"] = self.random.choice((*bad, {"enum": []}, {"minItems": 1.0}))
        return tools

    def _spoil(self, messages: list[dict[str, Any]]) -> None:
        """One thing that some formats refuse."""
        at = self.random.randrange(len(messages))
        message = messages[at]
        calls = [call for m in messages for call in m.get("tool_calls") or ()]
        spoiled = self.random.randrange(12)
        if spoiled == 0:
            del messages[at]
        elif spoiled == 1:
            message["role"] = self.random.choice(("user", "assistant", "system", "tool", "function", None))
        elif spoiled == 2:
            message["content"] = self.random.choice(
                (None, "", [], 3, [{"type": "text", "text": ""}], [{"text": "a"}])
            )
        elif spoiled == 3:
            message["content"] = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
        elif spoiled == 4:
            message["content"] = [{"type": "text", "text": "a"}, self._image()]
        elif spoiled == 5:
            messages.insert(at, dict(message))
        elif spoiled == 6:
            other = self.random.randrange(len(messages))
            messages[at], messages[other] = messages[other], messages[at]
        elif spoiled == 7:
            messages.insert(at, {"role": "system", "content": "s"})
        elif spoiled == 8 and calls:
            call = self.random.choice(calls)
            key, value = self.random.choice(
                (("id", "null"), ("id", "abc"), ("id", ""), ("id", "abcdefgh1\n"), ("type", "x"))
            )
            call[key] = value
        elif spoiled == 9 and calls:
            function = self.random.choice(calls)["function"]
            key, value = self.random.choice(
                (("name", "a b"), ("name", ""), ("name", "f\n"), ("arguments", [1]))
            )
            function[key] = value
        elif spoiled == 10 and calls:
            self.random.choice(calls)["id"] = self.random.choice(calls)["id"]
        elif message.get("role") == "tool":
            key, value = self.random.choice(
                (("name", "a b"), ("tool_call_id", None), ("tool_call_id", "zzzzzzzz9"))
            )
            message[key] = value

    def _maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def _number(self, most: int) -> int:
        return self.random.randint(0, most)
