"""Reply: a model's answer with its cost in tokens and seconds. What the answer says is in events.py."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.responses.events import Response, ToolCall


def renamed(new: str) -> Any:
    """A property that gives the attribute `new`, with a warning that names it: the attribute's old name."""

    def get(self: Any) -> Any:
        warnings.warn(
            f"this attribute is called {new}; its old name will go.", DeprecationWarning, stacklevel=2
        )
        return getattr(self, new)

    return property(get, doc=f"Old name of `{new}`.")


@dataclass(frozen=True)
class PromptSize:
    """The size of a prompt before it is read.

    Attributes:
        tokens: positions in all.
        image_tokens: positions of each image of the conversation.
        image_sizes: (height, width) in pixels of each image, as the vision tower sees it.
    """

    tokens: int
    image_tokens: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]

    picture_tokens = renamed("image_tokens")


@dataclass(frozen=True)
class Reply:
    """A model's answer to one question, and its cost. As a string it is the text.

    Attributes:
        response: text, reasoning and tool calls in the order written.
        prompt_tokens: positions of the whole conversation; `reused` of them were cached, `computed` were not.
        image_tokens: positions of each image of the conversation.
        images_encoded: images that went through the vision tower for this answer.
        completion_tokens: new ids.
        stopped_by: "stop", "length" or "interrupted".
        seconds: "prepare" (images and prompt), "first_token" (after that), "total".
    """

    response: Response
    prompt_tokens: int
    reused: int
    computed: int
    image_tokens: tuple[int, ...]
    images_encoded: int
    completion_tokens: int
    stopped_by: str
    seconds: Mapping[str, float]

    picture_tokens = renamed("image_tokens")
    pictures_encoded = renamed("images_encoded")

    @property
    def text(self) -> str:
        """The answer without reasoning and tool calls."""
        return self.response.text

    @property
    def reasoning(self) -> str:
        """All reasoning."""
        return self.response.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls."""
        return self.response.tool_calls

    @property
    def empty(self) -> bool:
        """Whether there is no answer; the question is then no part of the conversation either."""
        return not (self.text or self.reasoning or self.tool_calls)

    def __str__(self) -> str:
        return self.text
