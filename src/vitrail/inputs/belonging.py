"""Whether a folder's tokenizer belongs to its weights: ids of pictures' tokens and the vocabulary. Loads neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitrail.configs import PretrainedConfig
from vitrail.errors import CheckpointError
from vitrail.files.json import read_json
from vitrail.files.token_ids import TokenIds, read_token_ids, tokenizer_file

# The configuration's key → the key of processor_config.json that may rename the token, and its usual text.
_TOKENS = {
    "image_token_id": ("image_token", "[IMG]"),
    "image_break_token_id": ("image_break_token", "[IMG_BREAK]"),
    "image_end_token_id": ("image_end_token", "[IMG_END]"),
}


def check_tokenizer(folder: Path, config: PretrainedConfig, mode: str = "auto") -> None:
    """Raise CheckpointError, with both numbers, where the tokenizer in `folder` cannot be that of `config`'s model.

    Its ids must fit into the embeddings, and its [IMG], [IMG_BREAK] and [IMG_END] must have the ids that the
    configuration names (most name the first alone). A folder without a tokenizer passes.
    """
    file = tokenizer_file(folder, mode)
    if file is None:
        return
    found = read_token_ids(file)
    faults = [*_faults(folder, found, config)]
    if faults:
        raise CheckpointError(
            f"{file} does not belong to the model beside it: {'; '.join(faults)}. Use the tokenizer that was "
            "published with it."
        )


def _faults(folder: Path, found: TokenIds, config: PretrainedConfig) -> Iterator[str]:
    rows = getattr(config.get_text_config(), "vocab_size", None)  # a tower alone has no embeddings
    if rows is not None and found.size > rows:
        yield f"it has {found.size} ids, and the embeddings have {rows} rows"
    if not hasattr(config, "vision_config"):
        return
    settings = folder / "processor_config.json"
    names = read_json(settings) if settings.is_file() else {}
    for key, (spelled, usual) in _TOKENS.items():
        wanted, token = getattr(config, key, None), str(names.get(spelled) or usual)
        if wanted is not None and found.controls.get(token, wanted) != wanted:
            yield f"its {token} is {found.controls[token]}, and the configuration's {key} is {wanted}"
