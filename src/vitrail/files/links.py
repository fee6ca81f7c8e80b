"""Links that are followed in a checkpoint's folder: those within it, or into the hub cache's blobs beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError

SWITCH: Final = "VITRAIL_FOLLOW_LINKS"  # "1" in the environment trusts every link


def refuse_outside(file: Path, folder: Path) -> None:
    """Raise CheckpointError where a file of the checkpoint in `folder` is, or lies below, a link out of it.

    The folder itself and its parents may be links. Links of a snapshot in the hub's cache lead to its blobs.
    """
    if os.environ.get(SWITCH, "").strip() == "1":
        return
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise CheckpointError(
            f"{file} is a link to {real}, out of the checkpoint's folder, and is not followed: copy the file, or link the "
            f"whole folder; {SWITCH}=1 in the environment follows links that are all your own."
        )


def _blobs(root: Path) -> list[Path]:
    """Return the hub client's blobs folder for the snapshot (or part of one) `root`; never a link itself."""
    return [place.parent / "blobs" for place in root.parents if place.name == "snapshots"]
