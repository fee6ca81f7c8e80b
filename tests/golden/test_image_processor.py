"""Both image processors against numbers recorded with transformers 5.23 and torchvision (golden/data)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vitrail import PixtralImageProcessor, PixtralImageProcessorFast

DATA = Path(__file__).parent / "data"
SETTINGS = {
    "p8e96": (8, 96),
    "p14e112": (14, 112),
    "p14e1540": (14, 1540),
    "p16e1024": (16, 1024),
    "p28e1540": (28, 1540),
}
KINDS: dict[str, Any] = {"pil": PixtralImageProcessor, "tensor": PixtralImageProcessorFast}


def _processor(kind: str, setting: str) -> Any:
    patch, edge = SETTINGS[setting]
    return KINDS[kind](size={"longest_edge": edge}, patch_size={"height": patch, "width": patch})


def _image(name: str) -> Image.Image:
    return Image.open(DATA / "images" / f"{name}.png")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_recorded_image(kind: str, setting: str) -> None:
    """Sizes identical; PIL pixels within 1e-6; tensor pixels within one level (measured: 0 levels)."""
    golden = load_file(DATA / "image_processor" / f"{setting}.safetensors")
    names = sorted({key.split(".")[1] for key in golden} - {"batch"})
    assert len(names) >= 4
    processor = _processor(kind, setting)
    for name in names:
        made = processor(_image(name), return_tensors="np")
        assert made.image_sizes.tolist() == [golden[f"{kind}.{name}.size"].tolist()]
        expected, pixels = golden[f"{kind}.{name}.pixels"], made.pixel_values[0]
        assert pixels.dtype == np.float32
        if expected.ndim == 3:
            assert np.abs(pixels - expected).max() <= 1e-6
        else:  # mean, standard deviation and sum of absolutes of a large one
            measured = [pixels.mean(), pixels.std(ddof=1), np.abs(pixels).sum()]
            assert measured == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_padded_with_zeros_after_normalising(kind: str) -> None:
    golden = load_file(DATA / "image_processor" / "p8e96.safetensors")
    images = [_image(f"0{index}") for index in range(4)]
    made = _processor(kind, "p8e96")(images, return_tensors="pt")
    assert made.image_sizes.tolist() == golden[f"{kind}.batch.sizes"].tolist()
    assert made.pixel_values.shape == golden[f"{kind}.batch.pixels"].shape
    assert np.abs(made.pixel_values.numpy() - golden[f"{kind}.batch.pixels"]).max() <= 1e-6
    height, width = made.image_sizes[0].tolist()
    assert (made.pixel_values[0, :, height:] == 0).all()
    assert (made.pixel_values[0, :, :, width:] == 0).all()


@pytest.mark.parametrize("family", ["pixtral-0", "mistral3-0", "ministral3-0"])
def test_settings_saved_by_transformers_5_are_read(family: str, tmp_path: Path) -> None:
    """Its one processor_config.json holds the image processor; what is saved then loads to an equal one."""
    processor = PixtralImageProcessor.from_pretrained(DATA / family)
    side = 8 if family == "pixtral-0" else 7
    assert processor.patch_size == {"height": side, "width": side}
    processor.save_pretrained(tmp_path)
    assert PixtralImageProcessor.from_pretrained(tmp_path) == processor
    first = (tmp_path / "preprocessor_config.json").read_bytes()
    PixtralImageProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_bytes() == first
