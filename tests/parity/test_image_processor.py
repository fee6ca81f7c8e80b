"""Image processors and grids against live transformers 4.57 and live mistral-common."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings as hypothesis_settings, strategies as st
from PIL import Image

from tests.tiny import image as picture
from vitrail import BatchFeature, ImageError, PixtralImageProcessor, PixtralImageProcessorFast, image_grid

Reference = transformers.PixtralImageProcessor
SIZES = [(30, 40), (96, 96), (60, 200), (7, 5), (150, 33), (128, 3), (16, 16)]
sides = st.integers(1, 5000)


def _same(ours: BatchFeature, theirs: Any, within: float = 1e-6) -> None:
    """Equal sizes, and pixels of equal shape and type within `within`."""
    assert np.array_equal(np.asarray(ours["image_sizes"]), np.asarray(theirs["image_sizes"]))
    mine, reference = np.asarray(ours["pixel_values"]), np.asarray(theirs["pixel_values"])
    assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype)
    assert np.abs(mine.astype(np.float64) - reference).max() <= within


# Sizes


@hypothesis_settings(deadline=None)
@given(sides, sides, st.sampled_from([(16, 1024), (14, 1540), (28, 1540), (8, 96)]))
def test_the_hf_grid(height: int, width: int, setting: tuple[int, int]) -> None:
    """Equal, but for the one clamp: where the reference computes zero rows, one."""
    from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size

    patch, edge = setting
    blank = np.broadcast_to(np.uint8(0), (height, width, 3))
    expected = get_resize_output_image_size(blank, (edge, edge), (patch, patch), "channels_last")
    grid = image_grid(height, width, patch_size=patch, longest_edge=edge)
    assert (grid.height, grid.width) == (max(expected[0], patch), max(expected[1], patch))


@hypothesis_settings(deadline=None)  # the first example imports mistral-common
@given(sides, sides, st.sampled_from([(16, 1, 1024), (14, 2, 1540), (8, 2, 512)]))
def test_the_mistral_grid(height: int, width: int, setting: tuple[int, int, int]) -> None:
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

    patch, merge, edge = setting
    encoder = ImageEncoder(ImageConfig(patch, edge, merge), SpecialImageIDs(10, 12, 13))

    class Sized:
        size = (width, height)

    grid = image_grid(height, width, patch_size=patch, merge=merge, longest_edge=edge, dialect="mistral")
    assert (grid.cols, grid.rows) == encoder._image_to_num_tokens(Sized())  # type: ignore[arg-type]


# PIL backend


@pytest.mark.parametrize("setting", [(16, 1024), (14, 112), (7, 64)])
@pytest.mark.parametrize("tensors", ["pt", "np"])
def test_images_one_by_one_and_in_a_batch(setting: tuple[int, int], tensors: str) -> None:
    """Bit for bit: a level of an image goes through the same arithmetic."""
    patch, edge = setting
    options: Any = {"size": {"longest_edge": edge}, "patch_size": {"height": patch, "width": patch}}
    ours, theirs = PixtralImageProcessor(**options), Reference(**options)
    images = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    for image in images:
        _same(ours(image, return_tensors=tensors), theirs(image, return_tensors=tensors), within=0)
    made = ours(images, return_tensors=tensors)
    _same(made, theirs(images, return_tensors=tensors), within=0)
    assert type(made["image_sizes"]) is (torch.Tensor if tensors == "pt" else np.ndarray)
    nested = [images[:2], images[2:]]
    _same(ours(nested, return_tensors=tensors), theirs(nested, return_tensors=tensors), within=0)


def test_lists_without_return_tensors() -> None:
    images = [picture(40, 30), picture(30, 60)]
    ours, theirs = PixtralImageProcessor()(images), Reference()(images)
    assert ours["image_sizes"] == theirs["image_sizes"]
    assert type(ours["pixel_values"]) is type(theirs["pixel_values"]) is list
    _same(ours, theirs, within=0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "PA", "RGBX", "RGBa"])
def test_modes(mode: str) -> None:
    image = picture(50, 70)
    if mode in ("RGBA", "LA", "PA", "RGBa"):
        image.putalpha(picture(50, 70, seed=1).convert("L"))
    if mode == "PA":
        image = image.convert("LA")
    _same(PixtralImageProcessor()(image.convert(mode)), Reference()(image.convert(mode)), within=0)


def test_a_palette_with_a_transparent_colour() -> None:
    image = picture(50, 70).convert("P")
    image.info["transparency"] = image.getpixel((3, 3))
    _same(PixtralImageProcessor()(image), Reference()(image), within=0)


OPTIONS: list[dict[str, Any]] = [
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_rescale": False, "do_normalize": False, "do_resize": False},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": 0.5, "image_std": [0.5, 0.25, 2.0]},
    {"size": {"height": 40, "width": 100}},
    {"patch_size": {"height": 10, "width": 20}},
    {"patch_size": 12},
    {"resample": Image.Resampling.LANCZOS},
    {"resample": 2},
    {"resample": 0},
    {"data_format": "channels_last"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_options_of_a_call(options: dict[str, Any]) -> None:
    image = picture(50, 70)
    ours = PixtralImageProcessor(size={"longest_edge": 64})
    theirs = Reference(size={"longest_edge": 64})
    _same(ours.preprocess(image, **options), theirs.preprocess(image, **options), within=1e-6)


@pytest.mark.parametrize(
    "options", [item for item in OPTIONS if "data_format" not in item], ids=lambda options: "-".join(options)
)
def test_options_of_the_constructor(options: dict[str, Any]) -> None:
    image = picture(50, 70)
    _same(PixtralImageProcessor(**options)(image), Reference(**options)(image), within=1e-6)


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array,
        lambda array: array.transpose(2, 0, 1),
        lambda array: torch.from_numpy(array.copy()),
        lambda array: torch.from_numpy(array.copy()).permute(2, 0, 1),
        lambda array: array.astype(np.int64),
        lambda array: array.astype(np.float32),
        lambda array: array[None].repeat(2, axis=0),
        lambda array: [array, array[:20]],
        lambda array: (array / 255).astype(np.float32),
        lambda array: torch.from_numpy((array / 255).astype(np.float64)).permute(2, 0, 1),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"do_rescale": False}, {"do_resize": False}, {"do_normalize": False}]
)
def test_arrays_and_tensors_are_taken_as_they_are(convert: Any, options: dict[str, Any]) -> None:
    images = convert(np.asarray(picture(50, 70)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = PixtralImageProcessor()(images, return_tensors="np", **options)
        theirs = Reference()(images, return_tensors="np", **options)
    mine, reference = ours["pixel_values"], theirs["pixel_values"]
    assert np.array_equal(ours["image_sizes"], theirs["image_sizes"])
    assert mine.shape == reference.shape
    # Without rescaling, levels stay around 255, where float32 has steps of 1.5e-5 · 1/std.
    assert np.abs(mine - reference).max() <= 1e-6 * max(1.0, float(np.abs(reference).max()))


def test_where_the_reference_fails_too() -> None:
    """One pixel wide and 3000 high is nothing wide after shrinking."""
    narrow = picture(3000, 1)
    with pytest.raises(ValueError, match="height and width must be > 0"):
        Reference()(narrow)
    for kind in (PixtralImageProcessor, PixtralImageProcessorFast):
        with pytest.raises(ImageError, match="1000 times"):
            kind()(narrow)
    with pytest.raises(ImageError, match="less than one pixel"):
        PixtralImageProcessor(size={"longest_edge": 512})(picture(1, 600))


# Files


def test_what_one_saves_the_other_loads(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "size": {"longest_edge": 512},
        "patch_size": {"height": 14, "width": 14},
        "image_mean": [0.5] * 3,
        "resample": 2,
    }
    ours, theirs = PixtralImageProcessor(**options), Reference(**options)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    name = "preprocessor_config.json"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert PixtralImageProcessor.from_pretrained(tmp_path / "theirs") == ours
    image = picture(50, 70)
    loaded = Reference.from_pretrained(tmp_path / "ours")
    _same(PixtralImageProcessor.from_pretrained(tmp_path / "theirs")(image), loaded(image), within=0)


def test_settings_of_the_tensor_class_are_loaded_by_transformers(tmp_path: Path) -> None:
    """Without torchvision it reads them with the PIL class."""
    PixtralImageProcessorFast(size={"longest_edge": 96}, patch_size=8).save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    ours = PixtralImageProcessor.from_pretrained(tmp_path)
    _same(ours(picture(50, 170)), theirs(picture(50, 170)), within=0)


# The mistral dialect


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(4, 700), st.integers(4, 700), st.sampled_from([(16, 1, 256), (14, 2, 1540), (8, 1, 96)]))
def test_mistral_pixels(height: int, width: int, setting: tuple[int, int, int]) -> None:
    """Within 1e-5 of mistral-common's cv2, whose values reach ±3; measured worst case 4e-6."""
    patch, merge, edge = setting
    # One whose shorter side would shrink below a pixel is refused (tests/unit/test_image_processor.py).
    assume(min(height, width) * edge >= max(height, width))
    image = picture(height, width)
    _same_as_mistral(image, patch, merge, edge, 1e-5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
def test_mistral_modes_and_large_images(mode: str) -> None:
    image = picture(900, 1731)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture(900, 1731, seed=1).convert("L"))
    _same_as_mistral(image.convert(mode), 16, 1, 1024, 1e-5)


def _same_as_mistral(image: Image.Image, patch: int, merge: int, edge: int, within: float) -> None:
    from mistral_common.protocol.instruct.chunk import ImageChunk
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

    encoding = ImageEncoder(ImageConfig(patch, edge, merge), SpecialImageIDs(10, 12, 13))(
        ImageChunk(image=image)
    )
    for kind in (PixtralImageProcessor, PixtralImageProcessorFast):
        made = kind(size={"longest_edge": edge}, patch_size=patch * merge, dialect="mistral")(
            image, return_tensors="np"
        )
        assert made.pixel_values[0].shape == encoding.image.shape
        assert np.abs(made.pixel_values[0] - encoding.image).max() <= within
        rows, cols = (side // (patch * merge) for side in made.image_sizes[0])
        assert rows * (cols + 1) == len(encoding.tokens)


def test_mistral_keeps_overshoot() -> None:
    """Sharp edges go below black and above white; clamping them would be another model's input."""
    image = Image.new("L", (40, 40), 0)
    image.paste(255, (20, 0, 40, 40))
    made = PixtralImageProcessor(dialect="mistral", do_normalize=False)(
        image, return_tensors="np"
    ).pixel_values
    assert made.min() < -0.01
    assert made.max() > 1.01
    _same_as_mistral(image, 16, 1, 1024, 1e-5)
