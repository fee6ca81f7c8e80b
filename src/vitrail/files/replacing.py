"""Atomic replacement of several files in a folder: all of them, or none. Independent of their contents.

New files are written into a hidden folder beside, and moved when all are complete. From the first move to the last a
marker records that the folder mixes old and new files: after a kill in between it does not load, and the next save
completes it. The next save also removes hidden folders of ended processes.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, Final

from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.names import is_plain
from vitrail.files.opening import open_regular
from vitrail.files.writing import write_text, writing

INCOMPLETE: Final = ".vitrail-incomplete"
_PREFIX: Final = ".saving-"
_LOCK: Final = ".vitrail-lock"
_MARK_LIMIT = 1 << 22  # bytes of the marker
_FRESH = 60.0  # seconds that an empty hidden folder has to get its lock


@contextlib.contextmanager
def replacing(
    target: Path,
    *,
    last: str | None = None,
    stale: Callable[[str], bool] = lambda name: False,
    optional: Collection[str] = (),
) -> Iterator[Path]:
    """Provide a new folder whose files replace those of `target` after the block; an error changes nothing.

    Args:
        last: the file that marks the folder complete to readers: removed first, put back last.
        stale: whether a file of `target` that was not written again belongs to the earlier save, and is removed.
        optional: files that a save may omit; earlier ones then stay.

    Raises:
        CheckpointError: an error of the disk.
    """
    with writing(target):
        made = not target.exists()
        try:
            target.mkdir(parents=True, exist_ok=True)
            with scratch_folder(target, _PREFIX) as place:
                new = place / "new"
                new.mkdir()  # with the usual permissions, unlike a temporary folder
                yield new
                with _alone(target):
                    _move(new, place / "old", target, last, stale, optional)
        finally:
            if made and target.is_dir() and not any(target.iterdir()):
                target.rmdir()


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Provide a hidden folder in `parent` for unfinished files, removed at the end; remove abandoned ones first."""
    for name in glob.glob(f"{glob.escape(prefix)}*", root_dir=parent):
        _remove_abandoned(parent / name)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with (place / _LOCK).open("w") as stream:
            if not _lock(stream, wait=False):  # no locks on this file system: ownership would be unknown
                (place / _LOCK).unlink()
            yield place
    finally:
        _remove(place)


def refuse_incomplete(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise CheckpointError after an interrupted save into `folder`; `names` are its files where known."""
    if names is not None and INCOMPLETE not in names:
        return
    if pending := _pending(folder):
        raise CheckpointError(
            f"{folder} is incomplete: a save of {listed(sorted(pending), most=6)} ended before all was in place (or goes on "
            "right now); save the same again into it, or remove the folder."
        )


def _move(
    new: Path,
    old: Path,
    target: Path,
    last: str | None,
    stale: Callable[[str], bool],
    optional: Collection[str],
) -> None:
    """Move the files of `new` into `target`, those they replace into `old`; undo all after an error."""
    files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    files.sort(key=lambda name: (name == last, not name.endswith(".safetensors")))
    earlier = [name for name in files if os.path.lexists(target / name)]
    earlier += [path.name for path in target.iterdir() if path.name not in files and stale(path.name)]
    earlier.sort(key=lambda name: name != last)
    before = _pending(target)
    _mark(target, before | {*files, *earlier})
    kept, moved = list[str](), list[str]()
    try:
        for name in earlier:
            _rename(target / name, old / name)
            kept.append(name)
        for name in files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, target / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            (target / name).unlink()
        for name in reversed(kept):
            _rename(old / name, target / name)
        _mark(target, before)
        raise
    _mark(target, {name for name in before.difference(files, optional) if not stale(name)})


def _pending(folder: Path) -> set[str]:
    """Return the files of interrupted saves into `folder`."""
    try:
        with open_regular(folder / INCOMPLETE) as stream:
            names = json.loads(stream.read(_MARK_LIMIT))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, RecursionError):
        names = None
    return set(names) if isinstance(names, list) and all(map(is_plain, names)) else {"unknown files"}


def _mark(folder: Path, pending: set[str]) -> None:
    """Record the files of `folder` that are not all in place."""
    if pending:
        write_text(folder / INCOMPLETE, json.dumps(sorted(pending)))
    else:
        (folder / INCOMPLETE).unlink(missing_ok=True)


def _rename(path: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    path.rename(new)


def _remove_abandoned(place: Path) -> None:
    """Remove a hidden folder of Vitrail's that no process has locked; keep anything else."""
    if place.is_symlink() or not place.is_dir():
        return
    lock = place / _LOCK
    with contextlib.suppress(OSError):  # foreign, or gone meanwhile
        if not lock.exists():
            if time.time() - place.stat().st_mtime > _FRESH:
                place.rmdir()  # fails unless empty
        elif lock.is_file() and not lock.is_symlink() and _is_abandoned(lock):
            _remove(place)


def _remove(place: Path) -> None:
    """Remove a hidden folder, its lock last, so that the remains after a kill stay recognisable."""
    with contextlib.suppress(OSError):  # left to the next save
        for path in place.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        (place / _LOCK).unlink(missing_ok=True)
        place.rmdir()


def _is_abandoned(lock: Path) -> bool:
    with lock.open("r+") as stream:
        return _lock(stream, wait=False)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other save moves files in `folder`."""
    number = None
    with contextlib.suppress(
        OSError
    ):  # no open folders on this system: the caller must avoid concurrent saves
        number = os.open(folder, os.O_RDONLY)
    try:
        if number is not None:
            _lock(number, wait=True)
        yield
    finally:
        if number is not None:
            os.close(number)


def _lock(stream: IO[Any] | int, *, wait: bool) -> bool:
    """Lock a file while it is open; return False if it is locked, or without locks on this system."""
    try:
        import fcntl
    except ImportError:  # not available on this system
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
