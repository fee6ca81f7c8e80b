"""Reply: a model's answer with its cost in tokens and seconds; the answer itself is a Response (events.py)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.responses.events import Response, ToolCall


def renamed(new: str) -> Any:
    """Return a property for the old name of the attribute `new`, with a DeprecationWarning."""

    def get(self: Any) -> Any:
        warnings.warn(
            f"this attribute is called {new}; its old name will go.", DeprecationWarning, stacklevel=2
        )
        return getattr(self, new)

    return property(get, doc=f"Old name of `{new}`.")


@dataclass(frozen=True)
class PromptSize:
    """The size of a prompt before the model processes it.

    Attributes:
        tokens: Positions in all.
        image_tokens: Positions of each image of the conversation.
        image_sizes: (height, width) in pixels of each image at the input of the vision tower.
    """

    tokens: int
    image_tokens: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]

    picture_tokens = renamed("image_tokens")


@dataclass(frozen=True)
class Reply:
    """A model's answer to one question, and its cost. `str()` of it is the text.

    Attributes:
        response: Text, reasoning and tool calls in their order.
        prompt_tokens: Positions of the whole conversation.
        reused: Positions of the prompt in the cache.
        computed: Positions of the prompt that were computed.
        image_tokens: Positions of each image of the conversation.
        images_encoded: Images that passed through the vision tower for this answer.
        completion_tokens: Generated ids.
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
        """Whether there is no answer; the conversation then does not keep the question either."""
        return not (self.text or self.reasoning or self.tool_calls)

    def __str__(self) -> str:
        return self.text
