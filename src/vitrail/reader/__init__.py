"""The embedded OCR model: weights, synthetic training images, training recipe and evaluation."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitrail.errors import CheckpointError

__all__ = ["embedded_path"]


def embedded_path() -> Path:
    """Return the folder of the checkpoint shipped with the package.

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
