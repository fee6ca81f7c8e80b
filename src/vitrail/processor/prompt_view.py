"""PromptView and PromptMaker: conversations → ids, text and image grids for display; images by size alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.errors import CheckpointError, InputError, PromptError
from vitrail.images.grid import Grid, image_grid
from vitrail.prompts.builtin import FORMATS, BuiltPrompt, build_prompt
from vitrail.prompts.builtin.encode_chat import choose_format
from vitrail.prompts.builtin.pieces import BREAK, END, IMAGE
from vitrail.prompts.builtin.sizes import image_size, lay_out
from vitrail.prompts.builtin.tools import read_tools
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.conversation_file import Conversation
from vitrail.responses.control_names import control_names
from vitrail.tokenizer.fast import FastTokenizer
from vitrail.tokenizer.load import load_tokenizer
from vitrail.tokenizer.mistral import MistralCommonTokenizer

if TYPE_CHECKING:
    from vitrail.processor.processor import PixtralProcessor

TEMPLATE, AUTO = "template", "auto"
FORMAT_NAMES = (AUTO, TEMPLATE, *FORMATS)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring ids in one piece: a control token, a text, or an image (`grid`: rows, columns)."""

    kind: Literal["control", "text", "image"]
    text: str
    ids: tuple[int, ...]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class PromptView:
    """A prompt: its ids, their decoded text, each image's [rows, columns] of [IMG], and the format's name."""

    ids: list[int]
    text: str
    grids: list[list[int]]
    format: str
    tokenizer: Any

    def as_json(self) -> dict[str, Any]:
        """Return the output of `vitrail prompt --json`."""
        return {"ids": self.ids, "text": self.text, "grids": self.grids}

    @cached_property
    def runs(self) -> list[Run]:
        """The prompt in pieces, in order."""
        names = control_names(self.tokenizer)
        return list(_runs(self.ids, names, self.tokenizer))

    @property
    def typed(self) -> dict[str, int]:
        """Control tokens that a user typed, which stand in the prompt as text, and their counts."""
        pattern = control_pattern(tuple(sorted(set(control_names(self.tokenizer).values()))))
        found: dict[str, int] = {}
        for run in self.runs:
            if run.kind == "text":
                for name in pattern.findall(run.text):
                    found[name] = found.get(name, 0) + 1
        return found


@dataclass(frozen=True)
class PromptMaker:
    """A tokenizer, its image settings (None: no images), and the checkpoint's chat template (None: there is none)."""

    tokenizer: FastTokenizer | MistralCommonTokenizer
    images: Mapping[str, Any] | None = None
    template: Any = None

    def make(self, conversation: Conversation, format: str | None = None) -> PromptView:
        """Make the prompt of a conversation.

        Args:
            conversation: its images are only measured; `size:WxH` is enough.
            format: a built-in format's name; "auto" for the tokenizer's own; "template" for the checkpoint's chat
                template; None for the template if there is one, else "auto".

        Raises:
            PromptError: a fault in the conversation, with its place.
        """
        name = format or (AUTO if self.template is None else TEMPLATE)
        try:
            read_tools(conversation.tools)
            ids, grids, shown = (
                self._template(conversation) if name == TEMPLATE else self._built(conversation, name)
            )
        except PromptError as error:
            if not conversation.place:
                raise
            raise PromptError(f"{conversation.place}: {error}") from error
        cells = [[grid.rows, grid.cols] for grid in grids]
        return PromptView(ids, self.tokenizer.decode(ids), cells, shown, self.tokenizer)

    def build(
        self, conversation: Conversation, name: str = AUTO, *, mode: str = "test"
    ) -> tuple[BuiltPrompt, list[Grid]]:
        """Build a conversation's prompt in a built-in format, as pieces, with its grids; `mode` as `build_prompt`."""
        form = choose_format(name, self.tokenizer.prompt_format)
        prompt = build_prompt(
            conversation.messages,
            form,
            tools=conversation.tools,
            continue_final_message=conversation.continue_final_message,
            reasoning_effort=conversation.reasoning_effort,
            mode=mode,
        )
        return lay_out(prompt, self._grid, placeholders=True)

    def _built(self, conversation: Conversation, name: str) -> tuple[list[int], list[Grid], str]:
        prompt, grids = self.build(conversation, name)
        shown = choose_format(name, self.tokenizer.prompt_format).name
        return self.tokenizer.encode_prompt(prompt), grids, shown

    def _template(self, conversation: Conversation) -> tuple[list[int], list[Grid], str]:
        if self.tokenizer.default_format is not None:
            raise PromptError(
                "tokenizers of mistral-common have formats, no chat template; choose another format"
            )
        effort = conversation.reasoning_effort
        last = conversation.messages[-1] if conversation.messages else None
        chat = self.tokenizer.render_chat(
            conversation.messages,
            self.template,
            None,
            (IMAGE, BREAK, END),
            tools=conversation.tools,
            add_generation_prompt=_role(last) != "assistant",
            continue_final_message=conversation.continue_final_message,
            **({} if effort is None else {"reasoning_effort": effort}),
        )
        (prompt,), (parts,) = chat.prompts, chat.images
        if (written := prompt.count_images(IMAGE)) != len(parts):
            raise PromptError(f"the template wrote {written} {IMAGE} for {len(parts)} images")
        grids = [self._grid(*image_size(part, placeholders=True)) for part in parts]
        prompt = prompt.with_grids(iter(grids), (IMAGE, BREAK, END))
        bos = self.tokenizer.bos_token
        special = bos is None or not prompt.text.startswith(bos)  # else the template writes its own
        return self.tokenizer.encode_prompt(prompt, add_special_tokens=special), grids, TEMPLATE

    def _grid(self, height: int, width: int) -> Grid:
        if self.images is None:
            raise InputError(
                "this tokenizer does not say how images are prepared; give the folder of a checkpoint that reads them"
            )
        return image_grid(height, width, **self.images)


def open_maker(name: str | Path) -> PromptMaker:
    """Open the maker of a tokenizer's file (tokenizer.json, tekken.json, *.model.v*), a folder or a hub name.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = Path(name)
    if path.is_file() and path.name != "tokenizer.json":
        return _of_file(path)
    if not path.exists() and (path.suffix == ".json" or ".model" in path.name):
        raise CheckpointError(f"there is no file {path}; expected tokenizer.json, tekken.json or *.model.v*")
    from vitrail.files.hub import resolve
    from vitrail.processor.load import read_processor

    folder = path.parent if path.is_file() else resolve(name)
    if any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        return _of_parts(read_processor(folder, {}))
    tokenizer = load_tokenizer(folder)
    return _of_tokenizer(tokenizer)


def maker_of(processor: PixtralProcessor) -> PromptMaker:
    """Make the maker of a processor: its tokenizer, its image settings, its chat template."""
    return _of_parts(vars(processor))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else getattr(message, "role", None)


def _of_file(path: Path) -> PromptMaker:
    if path.suffix == ".json" and "tekken" not in path.name:
        from vitrail.tokenizer.backend import read_backend, token_ids_of
        from vitrail.tokenizer.mistral_regex import repair_regex

        backend = read_backend(path)
        token_ids_of(backend, path)  # raises for impossible ids and tokens
        repair_regex(backend, str(path), asked=None)
        return PromptMaker(FastTokenizer(backend))
    return _of_tokenizer(MistralCommonTokenizer(path))


def _of_tokenizer(tokenizer: FastTokenizer | MistralCommonTokenizer) -> PromptMaker:
    if isinstance(tokenizer, FastTokenizer):
        return PromptMaker(tokenizer, template=tokenizer.chat_template)
    from vitrail.processor.load import processor_parts

    return PromptMaker(tokenizer) if tokenizer.image_config is None else _of_parts(processor_parts(tokenizer))


def _of_parts(parts: Mapping[str, Any]) -> PromptMaker:
    """Make it of the arguments of a PixtralProcessor."""
    tokenizer = parts["tokenizer"]
    images = parts["image_processor"].grid_options(parts["patch_size"], parts["spatial_merge_size"])
    template = parts.get("chat_template")
    if template is None:
        template = getattr(tokenizer, "chat_template", None)
    return PromptMaker(tokenizer, images, template)


def _runs(ids: list[int], names: Mapping[int, str], tokenizer: Any) -> Iterator[Run]:
    """Yield text up to the next control token, control tokens one by one, and each image as one run."""
    start = 0
    while start < len(ids):
        stop = start + 1
        name = names.get(ids[start])
        if name is None:
            while stop < len(ids) and ids[stop] not in names:
                stop += 1
            yield Run("text", tokenizer.decode(ids[start:stop]), tuple(ids[start:stop]))
        elif name == IMAGE and (found := _grid_at(ids, start, names)) is not None:
            rows, cols, stop = found
            yield Run("image", f"[IMG {rows}×{cols}]", tuple(ids[start:stop]), (rows, cols))
        else:
            yield Run("control", name, (ids[start],))
        start = stop


def _grid_at(ids: list[int], start: int, names: Mapping[int, str]) -> tuple[int, int, int] | None:
    """Return (rows, columns, end) of the image whose tokens begin at `start`; None where they are no whole grid."""
    rows = 0
    cols: int | None = None
    width = 0
    for place in range(start, len(ids)):
        name = names.get(ids[place])
        if name == IMAGE:
            width += 1
            continue
        if name not in (BREAK, END) or not width or cols not in (None, width):
            return None
        rows, cols, width = rows + 1, width, 0
        if name == END:
            return rows, cols, place + 1
    return None
