"""Which links of a checkpoint's folder are followed: those that stay in it, or in the hub cache's blobs beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError

SWITCH: Final = "VITRAIL_FOLLOW_LINKS"  # "1" in the environment: every link is the user's own


def refuse_outside(file: Path, folder: Path) -> None:
    """Raise CheckpointError where a file of the checkpoint in `folder` is, or lies below, a link that leads out of it.

    The folder itself may be a link, as may what is above it. Links of a snapshot in the hub's cache lead to its blobs.
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
    """Where the hub's client keeps the contents of the snapshot that `root` is, or is a part of; never a link itself."""
    return [place.parent / "blobs" for place in root.parents if place.name == "snapshots"]
