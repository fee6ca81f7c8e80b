"""The tensors of a checkpoint's folder, whichever files they lie in. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vitrail.errors import CheckpointError, UnsupportedError
from vitrail.files.json import read_json
from vitrail.files.listing import listed
from vitrail.files.safetensors import SafetensorsFile, TensorEntry

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """Names → tensors of a folder with model.safetensors, with shards and an index, or with shards alone.

    Opening maps the files and checks their headers; no tensor is read. CheckpointError tells of everything that
    is missing, damaged or contradictory in one message.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        index, names = _find(self.folder)
        self._files = _open_all(self.folder, names)
        self._where = _locate(self._files) if index is None else _follow(index, self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def entry(self, name: str) -> TensorEntry:
        """Type and shape of a tensor, from its file's header."""
        return self._files[self._where[name]].entries[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped from its file: copy it before changing or keeping it."""
        return self._files[self._where[name]].tensor(name)

    def in_file_order(self) -> list[str]:
        """All names, file by file and in each as they lie: the fastest order to read in."""
        return sorted(self._where, key=lambda name: (self._where[name], self.entry(name).start))


def _find(folder: Path) -> tuple[Mapping[str, str] | None, list[str]]:
    """The index (tensor → file), if there is one, and the names of the files to open."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; a checkpoint's folder was expected.")
    if (folder / SINGLE).is_file():
        return None, [SINGLE]
    if (folder / INDEX).is_file():
        index = _read_index(folder / INDEX)
        return index, sorted(set(index.values()))
    found = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    shards = [name for name in found if not name.startswith(("consolidated", "adapter_"))]
    if shards:
        return None, shards
    raise _nothing_to_read(folder, found)


def _nothing_to_read(folder: Path, found: list[str]) -> CheckpointError | UnsupportedError:
    if any(name.startswith("consolidated") for name in found):
        return UnsupportedError(
            f"{folder} holds weights in Mistral's own layout (consolidated*.safetensors) only; this version reads "
            "Hugging Face's layout. Use the model's converted checkpoint."
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return CheckpointError(
            f"{folder} holds pickled weights only; they can run code and are not read. Convert them to safetensors."
        )
    return CheckpointError(f"{folder} has no {SINGLE}, no {INDEX} and no other safetensors file.")


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names.")
    for name, file in weight_map.items():
        # A bare name: an index must not lead out of the folder it lies in.
        plain = (
            isinstance(file, str) and file == os.path.basename(file) and "\\" not in file and "\0" not in file
        )
        if not plain or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} sends tensor {name[:200]!r} to {str(file)[:200]!r}; the name of a safetensors file in the "
                "same folder was expected."
            )
    return weight_map


def _open_all(folder: Path, names: list[str]) -> dict[str, SafetensorsFile]:
    files: dict[str, SafetensorsFile] = {}
    faults = []
    for name in names:
        try:
            files[name] = SafetensorsFile(folder / name)
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


def _follow(index: Mapping[str, str], files: Mapping[str, SafetensorsFile]) -> dict[str, str]:
    """`index`, after it has been compared with what the files hold."""
    lost = [name for name, file in index.items() if name not in files[file].entries]
    unlisted = [name for file, opened in files.items() for name in opened if index.get(name) != file]
    faults = [f"lists tensors that its files lack: {listed(lost)}"] if lost else []
    faults += [f"does not list tensors that its files hold: {listed(unlisted)}"] if unlisted else []
    if faults:
        path = next(iter(files.values())).path.parent / INDEX
        raise CheckpointError(f"{path} {' and '.join(faults)}.")
    return dict(index)
