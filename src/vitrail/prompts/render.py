"""render_chat: conversations to prompts with a chat template, for tokenizers and processors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.errors import InputError, PromptError, UnsupportedError
from vitrail.prompts.messages import ImagePart, images, normalize_batch
from vitrail.prompts.rendered_prompt import PromptText, RenderedPrompt
from vitrail.prompts.template_files import ChatTemplate

# For folders without a template whose tokenizer has [INST]: Mistral's turns in their simplest form.
DEFAULT_TEMPLATE = """\
{{- bos_token }}
{%- macro show(content) %}
{%- if content is string %}{{- content }}{%- else %}{%- for part in content %}
{%- if part['type'] == 'image' %}[IMG]{%- elif part['type'] == 'text' %}{{- part['text'] }}
{%- else %}{{- raise_exception('this checkpoint has no chat template, and the built-in one knows text and images') }}
{%- endif %}{%- endfor %}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' }}{{- show(message['content']) }}{{- '[/SYSTEM_PROMPT]' }}
{%- elif message['role'] == 'user' %}{{- '[INST]' }}{{- show(message['content']) }}{{- '[/INST]' }}
{%- elif message['role'] == 'assistant' and not message['tool_calls'] %}
{{- show(message['content']) }}{{- eos_token }}
{%- else %}{{- raise_exception('this checkpoint has no chat template, and the built-in one knows no tools') }}
{%- endif %}
{%- endfor %}
"""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Chat:
    """Rendered conversations.

    Attributes:
        prompts: One prompt for each conversation.
        images: The images of each conversation.
        batched: Whether a list of conversations was given.
    """

    prompts: Sequence[RenderedPrompt]
    images: list[list[ImagePart]]
    batched: bool

    @property
    def given(self) -> RenderedPrompt | list[RenderedPrompt]:
        """The prompt of one conversation, or the list of prompts of a list of conversations."""
        return list(self.prompts) if self.batched else self.prompts[0]

    @property
    def text(self) -> str | list[str]:
        """`given` as the strings of `apply_chat_template(tokenize=False)`."""
        texts = [PromptText(prompt) for prompt in self.prompts]
        return list(texts) if self.batched else texts[0]


def render_chat(
    conversation: Any,
    template: str,
    *,
    controls: Sequence[str],
    special_tokens: Mapping[str, Any],
    tools: Any = None,
    documents: Any = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    return_assistant_tokens_mask: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Chat:
    """Render one conversation or a list of them with `template`; arguments and errors as `template.render`."""
    from vitrail.prompts.template import render

    if hasattr(conversation, "messages") and tools is None:
        tools = getattr(conversation, "tools", None)  # a mistral-common request has its own tools
    conversations, batched = normalize_batch(conversation)
    for name, value in (("tools", tools), ("documents", documents)):
        if value is not None and not isinstance(value, (list, tuple)):
            raise PromptError(f"{name}: expected a list of dicts, got {type(value).__name__}")
    if return_assistant_tokens_mask and not _GENERATION.search(template):
        warnings.warn(
            "return_assistant_tokens_mask: the chat template has no {% generation %} tag that says what the assistant "
            "wrote; the mask is 0 everywhere",
            stacklevel=4,
        )
    prompts = [
        render(
            template,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            controls=controls,
            special_tokens=special_tokens,
            variables=variables,
            find_answers=bool(return_assistant_tokens_mask),
        )
        for messages in conversations
    ]
    return Chat(prompts, [images(messages) for messages in conversations], batched)


def choose_template(own: ChatTemplate | None, asked: str | None, tools: Any, controls: Sequence[str]) -> str:
    """Choose the template to render with: `asked` (a name or a source), else `own`, else the built-in one.

    Raises:
        PromptError: There is no template, or there are several and none is the default.
    """
    if isinstance(own, dict):
        if asked is not None:
            return own.get(asked, asked)
        name = "tool_use" if tools is not None and "tool_use" in own else "default"
        if name not in own:
            raise PromptError(
                f"there are several chat templates; pass chat_template= one of {', '.join(sorted(own))}"
            )
        return own[name]
    if asked is not None:
        return asked
    if own is not None:
        return own
    if "[INST]" in controls and "[/INST]" in controls:
        return DEFAULT_TEMPLATE
    raise PromptError(
        "this checkpoint has no chat template; pass chat_template= or write the prompt yourself"
    )


def check_answer_mask(asked: bool, tokenize: bool, return_dict: bool, continued: bool) -> None:
    """Raise InputError for options that exclude `return_assistant_tokens_mask` (`asked`)."""
    if asked and not (tokenize and return_dict):
        raise InputError(
            "return_assistant_tokens_mask=True needs tokenize=True and return_dict=True: the mask is `assistant_masks`"
        )
    if asked and continued:
        raise InputError(
            "return_assistant_tokens_mask does not go with continue_final_message; leave one out"
        )


def newer_chat_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keywords of transformers 5's apply_chat_template: `processor_kwargs` join the other options.

    Raises:
        UnsupportedError: An option has a value without an equivalent.
        InputError: An option is given twice.
    """
    options = dict(given)
    for name, only in (("sanitize_control_tokens", True), ("load_audio_from_video", False)):
        if options.pop(name, only) not in (only, None):
            raise UnsupportedError(
                f"{name}={not only} is not supported; leave it out"
                + (": control tokens that stand in a message stay text" if only else "")
            )
    for name, value in (options.pop("processor_kwargs", None) or {}).items():
        if name in options:
            raise InputError(f"{name} is given twice: in processor_kwargs and beside it")
        options[name] = value
    return options
