"""Download: progress of a fetch for listeners, and the check of free disk space. Fetches and prints nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from vitrail.arguments import checked
from vitrail.errors import CheckpointError
from vitrail.files.formatting import in_words

INTERVAL = 0.25  # seconds between two progress reports


@dataclass(frozen=True)
class Download:
    """The files of one fetch and its progress. Sizes are in bytes.

    Attributes:
        name, commit: the repository. format: "hf" or "mistral". weights: whether a model's weights are among the files.
        files, size: number of files and their size. done: bytes on the disk so far.
        folder, free: the destination, and the free space there before.
    """

    name: str
    commit: str
    format: str
    weights: bool
    files: int
    size: int
    done: int
    folder: Path
    free: int

    def check_room(self) -> None:
        """Raise CheckpointError where the rest does not fit on the disk."""
        needed = self.size - self.done
        if needed > self.free:
            raise CheckpointError(
                f"{self.name} needs {in_words(needed)} more, and {self.folder} has {in_words(self.free)} free; nothing "
                "was fetched. Free some, or choose another disk with cache_dir= or HF_HOME."
            )


Listener: TypeAlias = Callable[[Download], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@checked
@contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Call `listener` for every download in this block: before its first byte, several times a second, at its end.

    Calls come from another thread while bytes arrive. The progress bars of the hub's own client are off meanwhile.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Listener | None:
    """Return the current listener."""
    return _LISTENER.get()


@contextmanager
def told(download: Download, done: Callable[[], int]) -> Iterator[None]:
    """Report `download` to the listener during the block unless it has no files; `done` returns the bytes so far."""
    hear = listener()
    if hear is None or not download.files:
        yield
        return
    hear(download)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            hear(replace(download, done=done()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    hear(replace(download, done=download.size))


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


watch_downloads = watching  # its name in `vitrail`
