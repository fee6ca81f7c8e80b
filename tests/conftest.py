"""What every test has: no network, no home of the user, one thread, and tiny checkpoints to try things on.

Its plugins: packages.py skips what needs a library that is not installed, markers.py sets markers and shares tests out.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub client
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and before anything imports torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from PIL import Image

from tests import hub_server, tiny

pytest_plugins = ["tests.packages", "tests.markers"]

THREADS = int(os.environ["OMP_NUM_THREADS"].split(",")[0] or 1)  # outer,inner

settings.register_profile("vitrail", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("vitrail")


def pytest_collection_finish() -> None:
    """What the imported libraries hold stays: the garbage collector need not walk it again with every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home and cache folders are empty ones: no test reads or writes those of the person who runs it."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """`vitrail bench --threads` sets the whole process's: with more, every test after it waits for other tests' cores."""
    yield
    torch = sys.modules.get("torch")
    if torch and torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


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
def image() -> Callable[..., Image.Image]:
    """image(height, width, seed=0, mode="RGB") → a PIL image that is always the same."""
    return tiny.image


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.HubServer]:
    """A hub of this test's own, which the real client asks; it keeps what it fetches in tmp_path / "cache"."""
    with hub_server.serving() as hub, hub_server.client_of(hub, tmp_path / "cache", monkeypatch):
        yield hub


@pytest.fixture(scope="module")
def decoding_linear4bit() -> Iterator[None]:
    """bitsandbytes' 4-bit layers multiply the weights that it decodes, in the type that the layer computes in.

    Its own products on CPUs with AVX512-BF16 round inputs, scales and results to bfloat16, whatever type was asked for:
    what transformers answers would depend on the processor.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = pytest.importorskip("torch").nn.functional.linear

    def forward(self: Any, x: Any) -> Any:
        compute = self.compute_dtype or x.dtype
        weight = bitsandbytes.functional.dequantize_4bit(self.weight.data, self.weight.quant_state)
        bias = None if self.bias is None else self.bias.to(compute)
        return linear(x.to(compute), weight.to(compute), bias).to(x.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.Linear4bit, "forward", forward)
        yield
