"""SafetensorsCheckpoint: a folder of safetensors files, under the names in the files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.formatting import listed
from vitrail.files.layout import PARAMS_NAME
from vitrail.files.names import is_plain
from vitrail.files.replacing import refuse_incomplete
from vitrail.files.safetensors import SafetensorsFile, TensorSpec

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX = ".safetensors.index.json"
_NOT_SHARDS = ("consolidated", "adapter_")
# Prefix, number and count in a shard's name.
_OF = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.safetensors", re.ASCII)


class SafetensorsCheckpoint:
    """Names → tensors of a folder with model.safetensors, with shards and an index, or with shards only.

    Args:
        stem: "model" in Hugging Face's format; "consolidated" in Mistral's own (mistral_checkpoint.py).
        folder: the checkpoint's folder.
        files: open files by name, in order.
        index: the index's content, if any.

    Opening maps the files and checks their headers; no tensor is read. One CheckpointError names everything missing,
    damaged or contradictory.
    """

    config_name = "config.json"

    def __init__(self, folder: str | os.PathLike[str], *, stem: str = "model") -> None:
        self.folder = CheckpointFolder.at(folder)
        self.index, names = _find(self.folder, stem)
        self.files = _open_all(self.folder, names)
        refuse_incomplete(self.folder.path)  # a save may have begun since the folder was listed
        if self.index is None:
            self._where = _locate(self.files)
        else:
            path = self.folder.path / f"{stem}{_INDEX}"
            self._where = _follow(_weight_map(self.index, path), self.files, path)

    @property
    def kind(self) -> str | None:
        """model_type of the folder's configuration, or None."""
        found = self.folder.json(self.config_name).get("model_type")
        return found if isinstance(found, str) else None

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self.files.values()]

    def names(self) -> list[str]:
        """Return the names of all tensors, file by file in file order: the fastest order to read."""
        return sorted(self._where, key=lambda name: (self._where[name], self._spec(name).start))

    def spec(self, name: str) -> TensorSpec:
        """Return dtype and shape of a tensor from its file's header."""
        return self._spec(name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU, mapped from its file: copy it before changing or keeping it."""
        return self.files[self._where[name]].tensor(name)

    def copied(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a copy of a tensor that is read, not mapped."""
        return self.files[self._where[name]].copied(name, device, dtype)

    def copies(self, name: str) -> bool:
        """Return whether `tensor` copies, using memory of its own."""
        return False

    def shown(self, name: str) -> str:
        """Return the name of a tensor (of the files or of the model) for messages."""
        return name

    def _spec(self, name: str) -> TensorSpec:
        return self.files[self._where[name]].entries[name]


def _find(folder: CheckpointFolder, stem: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the index, if any, and the names of the files to open."""
    single, index = f"{stem}.safetensors", f"{stem}{_INDEX}"
    if single in folder.files:
        return None, [single]
    if index in folder.files:
        content = folder.json(index)
        return content, sorted(set(_weight_map(content, folder.path / index).values()))
    found = sorted(name for name in folder.files if name.endswith(".safetensors"))
    native = [name for name in found if name.startswith("consolidated")]
    shards = native if stem == "consolidated" else [n for n in found if not n.startswith(_NOT_SHARDS)]
    if not shards:
        raise _nothing_to_read(folder, stem, native)
    _check_complete(folder, shards)
    return None, shards


def _nothing_to_read(folder: CheckpointFolder, stem: str, native: list[str]) -> CheckpointError:
    looked_for = f"{folder} has no {stem}.safetensors, no {stem}{_INDEX} and no other safetensors file"
    if native:
        whole = PARAMS_NAME in folder.files
        advice = (
            "leave format out or say format='mistral'."
            if whole
            else f"but no {PARAMS_NAME}, which says what model it is: fetch it too."
        )
        return CheckpointError(
            f"{looked_for} in Hugging Face's format; there is {native[0]} in Mistral's own format{':' if whole else ','} "
            f"{advice}"
        )
    if any(name.endswith(".bin") or Path(name).suffix.startswith(".pt") for name in folder.files):
        return CheckpointError(
            f"{folder} holds pickled weights only; they can run code and are not read. Convert them to safetensors."
        )
    return CheckpointError(f"{looked_for}.")


def _check_complete(folder: CheckpointFolder, shards: list[str]) -> None:
    """Check that all shards are present, by the count in their names, if there is no index."""
    lost = set()
    numbered = {(found[1], found[3]) for found in map(_OF.fullmatch, shards) if found}
    for stem, count in sorted(numbered)[:10]:
        every = (f"{stem}{n:05d}-of-{count}.safetensors" for n in range(1, int(count) + 1))
        lost |= set(every).difference(shards)
    if lost:
        raise CheckpointError(f"{folder} lacks {len(lost)} of its shards: {listed(sorted(lost), most=20)}.")


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names.")
    for name, file in weight_map.items():
        # A plain file name: an index must not point outside its folder.
        if not is_plain(file) or "/" in file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} sends tensor {name[:200]!r} to {str(file)[:200]!r}; the name of a safetensors file in the "
                "same folder was expected."
            )
    return weight_map


def _open_all(folder: CheckpointFolder, names: list[str]) -> dict[str, SafetensorsFile]:
    files: dict[str, SafetensorsFile] = {}
    faults = []
    for name in names:
        try:
            files[name] = SafetensorsFile(folder.path / name)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(" ".join(faults))
    return files


def _locate(files: Mapping[str, SafetensorsFile]) -> dict[str, str]:
    where: dict[str, str] = {}
    twice = []
    for file, opened in files.items():
        twice += [name for name in opened if name in where]
        where.update(dict.fromkeys(opened, file))
    if twice:
        folder = next(iter(files.values())).path.parent
        raise CheckpointError(
            f"{folder}: several of its safetensors files hold the same tensors: {listed(twice)}."
        )
    return where


def _follow(index: Mapping[str, str], files: Mapping[str, SafetensorsFile], path: Path) -> dict[str, str]:
    """Return `index` after comparing it with the files' tensors."""
    lost = [name for name, file in index.items() if name not in files[file].entries]
    unlisted = [name for file, opened in files.items() for name in opened if index.get(name) != file]
    faults = [f"lists tensors that its files lack: {listed(lost)}"] if lost else []
    faults += [f"does not list tensors that its files hold: {listed(unlisted)}"] if unlisted else []
    if faults:
        raise CheckpointError(f"{path} {' and '.join(faults)}.")
    return dict(index)
