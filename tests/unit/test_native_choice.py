"""Choosing kernels: the environment, using(), threads; and models that answer alike with kernels and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from vitrail.errors import ConfigError
from vitrail.ops.cpu import library

ROOT = Path(__file__).parents[2]
FAMILIES = ("llava", "mistral3", "ministral3")

needs_kernels = pytest.mark.skipif(not library.available(), reason="no kernels here")


def in_a_process(code: str, **settings: str) -> Any:
    """What a new process prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), **settings}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_importing_opens_no_library() -> None:
    """No work at import, and no error of a wrong setting before something is asked for."""
    code = (
        "import json, vitrail.model.layers\n"
        "from vitrail.ops.cpu import library\n"
        "print(json.dumps(library._kernels.cache_info().currsize))"
    )
    assert in_a_process(code, VITRAIL_KERNELS="nonsense") == 0


@needs_kernels
def test_using_chooses_for_a_block_and_puts_back() -> None:
    before = library.status().used
    for isa in library.available():
        with library.using(isa):
            assert library.status().used == isa
            with library.using("off"):
                assert library.library() is None
            assert library.library() is not None
    assert library.status().used == before


@needs_kernels
@pytest.mark.parametrize("isa", ["sse9", *(isa for isa in library.ISAS if isa not in library.available())])
def test_using_what_is_not_there_says_so(isa: str) -> None:
    before = library.status().used
    with pytest.raises(ConfigError, match=isa), library.using(isa):
        pass
    assert library.status().used == before


@needs_kernels
def test_kernels_take_as_many_threads_as_pytorch() -> None:
    opened = library.library()
    assert opened is not None
    before = torch.get_num_threads()
    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            again = library.library()
            assert again is opened and again.vt_threads() == count == library.status().threads
    finally:
        torch.set_num_threads(before)
        library.library()


def logits(model: Any, isa: str) -> torch.Tensor:
    """Of a prompt with an image, with the kernels of an instruction set, as float32."""
    config = model.config
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1) * 3
    ids = torch.tensor([[1, *[config.image_token_index] * 9, *range(20, 40)]])
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    with torch.no_grad(), library.using(isa):
        found = model(input_ids=ids, pixel_values=pixels, image_sizes=torch.tensor([[side, side]]))
    result: torch.Tensor = found.logits.float()
    return result


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_the_same_with_kernels_and_without(family: str) -> None:
    """In float32 within its rounding; in bfloat16 as near to float32 as PyTorch comes."""
    model = tiny.model(family)
    exact = logits(model, "off")
    for isa in library.available():
        assert float((logits(model, isa) - exact).abs().max()) < 2e-5 * float(exact.std()), isa
    model.to(torch.bfloat16)
    usual = float((logits(model, "off") - exact).abs().mean())
    for isa in library.available():
        assert float((logits(model, isa) - exact).abs().mean()) < 1.25 * usual, isa


@needs_kernels
def test_generate_says_the_same_with_kernels_and_without() -> None:
    model = tiny.model("llava")
    ids = torch.tensor([[1, *range(20, 40)]])

    def answer() -> list[int]:
        found: list[int] = model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()
        return found

    with library.using("off"):
        expected = answer()
    for isa in library.available():
        with library.using(isa):
            assert answer() == expected
