"""Modules of 0.1.0 that have moved: the old name is the new module, and says so once."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from vitrail._moved import MOVED


@pytest.mark.parametrize("old", sorted(name for name, new in MOVED.items() if new))
def test_moved_module_old_name_is_the_new_module(old: str) -> None:
    sys.modules.pop(f"vitrail.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"vitrail\.{MOVED[old]};"):
        found = import_module(f"vitrail.{old}")
    assert found is import_module(f"vitrail.{MOVED[old]}")


def test_moved_module_first_import_warns_once_where_it_stands() -> None:
    code = (
        "from vitrail.inputs.formats import build_prompt\n"
        "from vitrail.inputs.formats.versions import FORMATS\n"
        "from vitrail.inputs.formats import FORMATS as again\n"
        "from vitrail.prompts.builtin.build import build_prompt as new\n"
        "assert build_prompt is new and again is FORMATS\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("vitrail.inputs.formats has moved to vitrail.prompts.builtin;") == 1


def test_moved_module_unknown_name_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("vitrail.inputs.nothing")


# The table of 0.1.0's __init__.py as far as homes have moved since, and what its pages import from modules.
OLD_HOMES = """
dialogue: Dialogue Turn
generate.cache: KVCache
inputs.batch: BatchFeature
inputs.fetch: FetchPolicy
inputs.grid: Grid image_grid image_tokens
inputs.image_processor: PixtralImageProcessor PixtralImageProcessorFast
inputs.images: ImageLimits load_image
inputs.mistral_tokenizer: MistralCommonBackend MistralCommonTokenizer
inputs.pdf: PdfLimits load_pages
inputs.processor: PixtralProcessor
inputs.response: ResponseParser
inputs.response_pieces: Response ToolCall
quant.config: BitsAndBytesConfig
quant.own_config: QuantizeConfig
files.download: watching
inputs.formats: build_prompt
inputs.processor_files: processor_parts
ops.native: available library status using
reader: embedded_path
train.job: Job
train.settings: Settings
weights.convert: convert
"""


@pytest.mark.parametrize("line", OLD_HOMES.split("\n")[1:-1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_public_names_of_0_1_0_are_where_they_were(line: str) -> None:
    home, _, names = line.partition(": ")
    module = import_module(f"vitrail.{home}")
    assert all(hasattr(module, name) for name in names.split())


def test_renamed_class_is_the_new_one_and_says_so_once() -> None:
    code = (
        "from vitrail.dialogue import Turn\n"
        "import vitrail, vitrail.dialogue\n"
        "assert Turn is vitrail.Reply is vitrail.dialogue.Turn is vitrail.Turn\n"
    )
    command = [sys.executable, "-W", "always::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("vitrail.dialogue.Turn is called vitrail.Reply now") == 1
    assert done.stderr.count("vitrail.Turn is called vitrail.Reply now") == 1
