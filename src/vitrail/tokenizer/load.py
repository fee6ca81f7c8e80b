"""Choice and loading of a folder's tokenizer, and the check that it fits the weights."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.configs import PretrainedConfig
from vitrail.errors import CheckpointError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.token_ids import TOKENIZER_JSON, TokenIds
from vitrail.tokenizer.options import native_options

if TYPE_CHECKING:
    from vitrail.tokenizer.fast import FastTokenizer
    from vitrail.tokenizer.mistral import MistralCommonTokenizer

# Name in processor_config.json (may rename the token), its usual text, the configuration's keys for its id.
_TOKENS = {
    "image_token": ("[IMG]", ("image_token_index", "image_token_id")),
    "image_break_token": ("[IMG_BREAK]", ("image_break_token_id",)),
    "image_end_token": ("[IMG_END]", ("image_end_token_id",)),
}


def choose_tokenizer(folder: str | os.PathLike[str], mode: str = "auto") -> Path:
    """Choose the tokenizer's file: tekken.json or *.model.v* before tokenizer.json, for mode "hf" the reverse.

    Without mistral-common installed, a tokenizer.json is chosen instead, with a warning.

    Raises:
        CheckpointError: the folder has no tokenizer.
        InputError: unknown mode.
    """
    folder = CheckpointFolder.at(folder)
    file = folder.tokenizer_file(mode)
    if file is None:
        folder.refuse_adapter()
        raise CheckpointError(
            f"{folder} has no tokenizer: neither tokenizer.json, tekken.json nor *.model.v*"
        )
    if (
        mode == "auto"
        and file.name != TOKENIZER_JSON
        and TOKENIZER_JSON in folder.files
        and not importlib.util.find_spec("mistral_common")
    ):
        warnings.warn(
            f"{file.name} comes first but needs mistral-common (pip install 'vitrail[mistral]'); tokenizer.json is used.",
            stacklevel=3,
        )
        return folder.path / TOKENIZER_JSON
    return file


def load_tokenizer(
    folder: str | os.PathLike[str],
    mode: str = "auto",
    *,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> FastTokenizer | MistralCommonTokenizer:
    """Load the tokenizer that `choose_tokenizer` chooses.

    Args:
        config: the model's configuration; checked by `check_tokenizer`.
        options: those of the tokenizer's `from_pretrained`.
    """
    folder = CheckpointFolder.at(folder)
    file = choose_tokenizer(folder, mode)
    tokenizer: FastTokenizer | MistralCommonTokenizer
    if file.name == TOKENIZER_JSON:
        from vitrail.tokenizer.fast import FastTokenizer

        tokenizer = FastTokenizer.from_pretrained(folder, **options)
    else:
        from vitrail.tokenizer.mistral import MistralCommonTokenizer

        tokenizer = MistralCommonTokenizer(file, **native_options(options))
        ids = {name: tokenizer.encoder.find(name) for name in tokenizer.control_tokens}
        controls = {name: index for name, index in ids.items() if index is not None}
        folder.keep_token_ids(TokenIds(file, tokenizer.vocab_size, controls))
    if config is not None:
        check_tokenizer(folder, config, mode)
    return tokenizer


def check_tokenizer(
    folder: str | os.PathLike[str], config: PretrainedConfig | Mapping[str, Any], mode: str = "auto"
) -> None:
    """Raise CheckpointError, with both numbers, where the tokenizer in `folder` does not fit `config`'s model.

    The ids must fit into the embeddings, and [IMG], [IMG_BREAK] and [IMG_END] must have the configuration's ids (most
    configurations name the first alone). A folder without a tokenizer passes.
    """
    folder = CheckpointFolder.at(folder)
    file = folder.tokenizer_file(mode)
    if file is None:
        return
    given = config.to_dict() if isinstance(config, PretrainedConfig) else config
    faults = [*_faults(folder, folder.token_ids(file), given)]
    if faults:
        raise CheckpointError(
            f"{file} does not belong to the model beside it: {'; '.join(faults)}. Use the tokenizer that was "
            "published with it."
        )


def _faults(folder: CheckpointFolder, found: TokenIds, config: Mapping[str, Any]) -> Iterator[str]:
    text = config.get("text_config", config)
    rows = text.get("vocab_size") if isinstance(text, Mapping) else None
    if isinstance(rows, int) and found.size > rows:
        yield f"it has {found.size} ids, and the embeddings have {rows} rows"
    names = folder.json("processor_config.json")
    for spelled, (usual, keys) in _TOKENS.items():
        token = str(names.get(spelled) or usual)
        for key in keys:
            wanted = config.get(key)
            if wanted is not None and found.controls.get(token, wanted) != wanted:
                yield f"its {token} has the id {found.controls[token]}, and {key} of the configuration is {wanted}"
