"""Wanted: the files of a repository for one call: settings, a model of one format, or an adapter. Fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.layout import HF, choose_among, small_files, weight_files
from vitrail.files.repository import Repository

SETTINGS: Final = "settings"  # configuration, tokenizer, templates: all but the weights
MODEL: Final = "model"  # the same, and the weights of one format
ADAPTER: Final = "adapter"  # adapter_config.json and its weights
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Wanted:
    """The files of one call: the chosen format, the small files (the configuration last), and the weights' files."""

    format: str
    small: list[str]
    weights: list[str]

    @classmethod
    def of(cls, repository: Repository, format: str | None, part: str) -> Wanted:
        """Choose the files of one part (SETTINGS, MODEL or ADAPTER), of one format for the first two.

        Raises:
            CheckpointError: the repository lacks that format, or readable weights.
        """
        files = repository.files
        if part == ADAPTER:
            return cls(HF, *_adapter(repository))
        chosen = choose_among(files, format, repository.name)
        small = small_files(files, chosen)
        large = weight_files(files, chosen) if part == MODEL else []
        if part == MODEL and not any(name.endswith(".safetensors") for name in large):
            raise CheckpointError(f"{repository.name} {_no_weights(files)}")
        if not small:
            raise CheckpointError(f"{repository.name} {_nothing(files)}")
        return cls(chosen, small, large)

    @property
    def names(self) -> list[str]:
        """All files, in fetching order."""
        return [*self.small, *self.weights]


def _adapter(repository: Repository) -> tuple[list[str], list[str]]:
    """Return an adapter's small files and its weights."""
    names = sorted(name for name in repository.files if name.startswith("adapter_"))
    weights = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    small = [name for name in names if name.endswith(".json") and name not in weights]
    if not small or not weights:
        raise CheckpointError(
            f"{repository.name} holds no adapter: adapter_config.json with adapter_model.safetensors was looked for."
        )
    return small, weights


def _no_weights(names: Iterable[str]) -> str:
    pickles = [
        name for name in names if PurePosixPath(name).suffix in _PICKLES and not name.startswith("adapter_")
    ]
    if not pickles:
        return _nothing(names)
    return (
        f"holds pickled weights only ({listed(pickles, most=3)}); they can run code and are never fetched. Use a repository "
        "with safetensors."
    )


def _nothing(names: Iterable[str]) -> str:
    found = listed(sorted(names), most=8) or "nothing"
    return (
        "is no checkpoint of this family: config.json with *.safetensors (Hugging Face's format) or params.json with "
        f"consolidated*.safetensors (Mistral's own) was looked for, and there is {found}."
    )
