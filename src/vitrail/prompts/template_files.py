"""find_chat_template, save_chat_template: read the chat templates of a folder and write them back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from vitrail.errors import CheckpointError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.lfs import refuse_pointer
from vitrail.files.links import refuse_outside
from vitrail.files.names import is_plain
from vitrail.files.opening import open_regular
from vitrail.files.writing import write_text

ChatTemplate: TypeAlias = str | dict[str, str]
TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_LIMIT = 4 << 20  # bytes of a template file; template.py limits the characters
_MOST_TEMPLATES = 64  # files of additional_chat_templates/


def find_chat_template(folder: CheckpointFolder, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Read a folder's chat template.

    Sources in this order: chat_template.jinja (and additional_chat_templates/), chat_template.json, `chat_template`
    in tokenizer_config.json.

    Args:
        folder: The checkpoint folder.
        config: Its tokenizer_config.json.

    Returns:
        The template, name → template for several, or None.

    Raises:
        CheckpointError: A source is unreadable or holds no template.
    """
    others = folder.path / "additional_chat_templates"
    more = {}
    for file in _template_files(others):
        refuse_outside(file, folder.path)
        more[file.stem] = _read_text(file)
    if TEMPLATE_FILE in folder.files:
        main = _read_text(folder.path / TEMPLATE_FILE)
        return {"default": main, **more} if more else main
    if more:
        return more
    legacy = "chat_template.json"
    found = (folder.json(legacy) if legacy in folder.files else config).get("chat_template")
    if isinstance(found, list):  # several templates in transformers 4.x
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    named = isinstance(found, dict) and all(isinstance(text, str) for item in found.items() for text in item)
    if found is None or isinstance(found, str) or named:
        return found
    raise CheckpointError(
        f"{folder}: 'chat_template' must be a text or named texts; got {type(found).__name__}"
    )


def save_chat_template(folder: Path, template: ChatTemplate | None) -> list[Path]:
    """Write the template as .jinja files and return their paths.

    Raises:
        CheckpointError: A template's name is no valid file name.
    """
    named = {"default": template} if isinstance(template, str) else (template or {})
    written = []
    for name, text in named.items():
        if not is_plain(name) or "/" in name:
            raise CheckpointError(
                f"the chat template {name[:100]!r} cannot be saved: its name becomes a file's; give it a plain one."
            )
        more = folder / "additional_chat_templates"
        file = folder / TEMPLATE_FILE if name == "default" else more / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        written.append(write_text(file, text))
    return written


def _template_files(folder: Path) -> list[Path]:
    """List the folder's templates in order; [] without such a folder."""
    if not folder.is_dir():
        return []
    found = list(islice((file for file in folder.glob("*.jinja") if file.is_file()), _MOST_TEMPLATES + 1))
    if len(found) > _MOST_TEMPLATES:
        raise CheckpointError(f"{folder} has more than {_MOST_TEMPLATES} chat templates")
    return sorted(found)


def _read_text(file: Path) -> str:
    try:
        with open_regular(file) as stream:
            data = stream.read(_TEMPLATE_LIMIT + 1)
        if len(data) > _TEMPLATE_LIMIT:
            raise CheckpointError(
                f"{file} is larger than the {_TEMPLATE_LIMIT:,} bytes that a template may have"
            )
        refuse_pointer(data, str(file))
        return data.decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: byte {error.start}") from error
