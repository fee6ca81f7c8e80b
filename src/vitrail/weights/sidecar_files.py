"""Files beside a checkpoint's weights that are copied with them: tokenizers, settings, licences."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Container
from pathlib import Path

from vitrail.configs import PretrainedConfig, VisionLanguageConfig
from vitrail.files.links import refuse_outside
from vitrail.weights.checkpoint import Checkpoint

# Tokenizers, templates, settings and licences; nothing that is loaded as weights.
_COPIED = re.compile(r"(?!\.).*(\.json|\.jinja|\.md|\.txt|\.model(\.v\d+(m\d+)?)?)|LICENSE.*", re.ASCII)


def copy_beside(source: Path, target: Path, *, leave_out: Container[str] = ()) -> None:
    """Copy the files beside the weights of `source` to `target`, except those in `leave_out` and indexes of shards."""
    for path in sorted(source.iterdir()):
        index = path.name.endswith(".index.json")
        if path.is_file() and not index and _COPIED.fullmatch(path.name) and path.name not in leave_out:
            refuse_outside(path, source)
            shutil.copyfile(path, target / path.name)


def write_image_settings(config: PretrainedConfig, folder: Path) -> None:
    """Write the image settings that Hugging Face's format keeps in files of their own."""
    if not isinstance(config, VisionLanguageConfig):
        return
    tower = config.vision_config
    side = {"height": tower.patch_size, "width": tower.patch_size}
    images = {
        "image_processor_type": "PixtralImageProcessor",
        "processor_class": "PixtralProcessor",
        "patch_size": side,
        "size": {"longest_edge": tower.image_size},
    }
    processor = {
        "processor_class": "PixtralProcessor",
        "patch_size": tower.patch_size,
        "spatial_merge_size": getattr(config, "spatial_merge_size", 1),
    }
    for name, content in (("preprocessor_config.json", images), ("processor_config.json", processor)):
        if not (folder / name).is_file():
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def note_kind(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """Set fields of the configuration that published ones have and Mistral's own format lacks: dtype, class."""
    if config.dtype is None:
        first = next(iter(checkpoint.names()), None)
        config.dtype = None if first is None else checkpoint.spec(first).dtype
    if config.architectures is None:
        kinds = {"llava": "LlavaForConditionalGeneration", "mistral3": "Mistral3ForConditionalGeneration"}
        kind = type(config).model_type
        config.architectures = [kinds.get(kind, f"{kind.capitalize()}ForCausalLM")]
