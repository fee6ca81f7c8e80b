"""The embedded model: its weights, the synthetic images it learned from, its recipe and its evaluation."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitrail.errors import CheckpointError

__all__ = ["embedded_path"]


def embedded_path() -> Path:
    """The folder of the checkpoint that the package carries.

    Raises:
        CheckpointError: the package was installed without its weights.
    """
    folder = Path(str(resources.files(__package__) / "weights"))
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"the embedded model's weights are missing: expected {folder / 'model.safetensors'}. "
            "Install the package again, or name another checkpoint (--model)."
        )
    return folder
