"""What every test has: no network, no home of the user, one thread, and tiny checkpoints to try things on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub client
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from PIL import Image

from tests import tiny


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home and cache folders are empty ones: no test reads or writes those of the person who runs it."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llava checkpoint: patch 8, no merging, projector with bias (like Pixtral 12B)."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llava", "llava")


@pytest.fixture(scope="session")
def tiny_mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Mistral3 checkpoint: patch 7, merge 2, no bias (like Mistral Small 3.1)."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "mistral3", "mistral3")


@pytest.fixture(scope="session")
def tiny_ministral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Mistral3 checkpoint over `ministral3`: YaRN, query scaling, tied embeddings."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "ministral3", "ministral3")


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """picture(height, width, seed=0, mode="RGB") → a PIL picture that is always the same."""
    return tiny.picture
