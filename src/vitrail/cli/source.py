"""Source: the checkpoint of a command, downloaded with a progress bar if named on the hub."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.output import echo
from vitrail.cli.screen import waiting
from vitrail.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vitrail.configs import PretrainedConfig
    from vitrail.files.checkpoint_folder import CheckpointFolder
    from vitrail.files.download import Download


@dataclass(frozen=True)
class Source:
    """A checkpoint: its given name, its opened folder, and the format to read (None: by the files)."""

    name: str
    folder: "CheckpointFolder"
    format: str | None = None

    @classmethod
    def open(cls, name: str, format: str | None = None, revision: str | None = None) -> "Source":
        """Open the folder `name`, or download a hub model's settings without its weights.

        Raises:
            CheckpointError: a missing checkpoint. InputError: --revision with a folder.
        """
        from vitrail.files.checkpoint_folder import CheckpointFolder
        from vitrail.files.hub_options import HubOptions
        from vitrail.files.opening import home_path

        if revision is not None and home_path(name).is_dir():
            raise InputError(f"--revision is for names on the hub, and {name} is a folder; leave it out")
        with _shown(name):
            return cls(name, CheckpointFolder.open(name, HubOptions(revision), format=format), format)

    def fetch_weights(self) -> None:
        """Download missing weights of the same commit into the folder."""
        with _shown(self.name):
            self.folder.fetch_weights()


def read_model(source: Source, *, with_images: bool) -> "PretrainedConfig":
    """Read the checkpoint's configuration before importing torch, so that a wrong folder fails at once."""
    from vitrail.auto import AutoConfig

    config = AutoConfig.from_pretrained(source.folder)
    if with_images and not config.has_vision:
        raise InputError(f"{source.name} reads text only; ask it without images or choose another --model")
    return config


def embedded() -> str:
    """Return the folder of the embedded reader's checkpoint."""
    from vitrail.reader import embedded_path

    return str(embedded_path())


@contextmanager
def _shown(name: str) -> Iterator[None]:
    from vitrail.files.download import watching

    with waiting() as line, closing(_Bar(line.stop)) as bar, watching(bar.hear):
        if not Path(name).is_dir():
            line.say(f"looking for {name}")
        yield


class _Bar:
    """Progress of a download on stderr: its size in one line if it has weights, and a bar on a terminal."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told = False

    def hear(self, download: "Download") -> None:
        """Show the progress of `files.download`."""
        if not self._told:
            self._told = True
            self._begin()
            if download.weights:
                echo(f"vitrail: fetching {_in_words(download)}", err=True)
            if sys.stderr.isatty():
                self._progress = _make_progress()
                self._task = self._progress.add_task(download.name, total=download.size)
                self._progress.start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=download.done)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()


def _in_words(download: "Download") -> str:
    from vitrail.files.formatting import in_words
    from vitrail.files.layout import NAMES

    rest = f", {in_words(download.done)} of it are here" if download.done else ""
    files = "1 file" if download.files == 1 else f"{download.files} files"
    return (
        f"{download.name} in {NAMES[download.format]}: {in_words(download.size)} in {files}{rest}; "
        f"{in_words(download.free)} are free in {download.folder}"
    )


def _make_progress() -> "Progress":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from vitrail.cli.console import PlainConsole

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    console = PlainConsole(stderr=True)
    return Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True)
