"""Options, spellings, files and errors of both image processors; their numbers are in parity/ and golden/."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.tiny import image as picture
from vitrail import (
    CheckpointError,
    ImageError,
    InputError,
    PixtralImageProcessor,
    PixtralImageProcessorFast,
    UnsupportedError,
    image_tokens,
)

BOTH = pytest.mark.parametrize("kind", [PixtralImageProcessor, PixtralImageProcessorFast])


def _png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@BOTH
def test_every_spelling_gives_the_same_pixels(kind: Any, tmp_path: Path) -> None:
    image = picture(20, 30)
    data, array = _png(image), np.asarray(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    processor = kind(patch_size=8)
    expected = processor(image, return_tensors="pt")
    assert expected.pixel_values.shape == (1, 3, 24, 32)
    for images in (
        [image],
        [[image]],
        (image,),
        str(path),
        path,
        data,
        "data:image/png;base64," + base64.b64encode(data).decode(),
        array,
        array[None],
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        [torch.from_numpy(array.copy()).permute(2, 0, 1)],
    ):
        made = processor(images, return_tensors="pt")
        assert torch.equal(made.pixel_values, expected.pixel_values)
        assert torch.equal(made.image_sizes, expected.image_sizes)


@BOTH
def test_an_image_in_a_batch_equals_the_image_alone(kind: Any) -> None:
    images = [picture(40, 30), picture(16, 90), picture(70, 20)]
    processor = kind(patch_size=16)
    batch = processor(images, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 80, 96)
    for index, image in enumerate(images):
        alone = processor(image, return_tensors="pt")
        height, width = batch.image_sizes[index].tolist()
        assert torch.equal(batch.pixel_values[index, :, :height, :width], alone.pixel_values[0])
        assert batch.pixel_values[index].abs().sum() == pytest.approx(float(alone.pixel_values.abs().sum()))


@BOTH
def test_kinds_of_results(kind: Any) -> None:
    image = picture(20, 30)
    tensors, arrays, lists = (kind()(image, return_tensors=name) for name in ("pt", "np", None))
    assert tensors.pixel_values.dtype == torch.float32
    assert (tensors.image_sizes.dtype, tensors.image_sizes.tolist()) == (torch.int64, [[32, 32]])
    assert np.array_equal(arrays.pixel_values, tensors.pixel_values.numpy())
    assert lists.image_sizes == [(32, 32)]
    assert list(lists) == kind.model_input_names == ["pixel_values", "image_sizes"]


def test_data_format_none_keeps_that_of_the_images() -> None:
    image = picture(20, 30)
    array = np.asarray(image)
    processor = PixtralImageProcessor()
    assert processor(image, data_format=None)["pixel_values"][0].shape == (32, 32, 3)
    assert processor(array.transpose(2, 0, 1), data_format=None)["pixel_values"][0].shape == (3, 32, 32)
    with pytest.raises(ImageError, match="differ"):
        processor([image, array.transpose(2, 0, 1)], data_format=None)


@BOTH
def test_input_data_format_settles_doubt(kind: Any) -> None:
    """(3, 40, 3) could be either; the first is believed, as in transformers."""
    ambiguous = np.zeros((3, 40, 3), np.uint8)
    sizes = [
        kind(patch_size=1)(ambiguous, input_data_format=layout)["image_sizes"]
        for layout in (None, "channels_first", "channels_last")
    ]
    assert sizes == [[(40, 3)], [(40, 3)], [(3, 40)]]
    with pytest.raises(ImageError, match="channels_last"):
        kind()(np.zeros((3, 40, 50), np.uint8), input_data_format="channels_last")


@BOTH
@pytest.mark.parametrize("budget", [2, 20, 300, 5000])
def test_a_budget_of_tokens(kind: Any, budget: int) -> None:
    for image in (picture(300, 500), picture(40, 30)):
        made = kind(patch_size=16)(image, max_image_tokens=budget, return_tensors="np")
        rows, cols = made.image_sizes[0] // 16
        assert rows * (cols + 1) == image_tokens(image.height, image.width, max_image_tokens=budget) <= budget
        always = kind(patch_size=16, max_image_tokens=budget)(image, return_tensors="np")
        assert np.array_equal(always.pixel_values, made.pixel_values)


def test_the_dialects_give_different_grids() -> None:
    """1199 × 3191 of docs/formats.md, "Resizing and normalising", shrunk to 1024."""
    image = Image.new("RGB", (1199, 3191))
    heights = {
        dialect: PixtralImageProcessor(dialect=dialect)(image)["image_sizes"][0][1]
        for dialect in ("hf", "hf-ceil", "mistral")
    }
    assert heights == {"hf": 384, "hf-ceil": 400, "mistral": 400}


@BOTH
def test_grey_and_transparent_arrays_become_rgb(kind: Any) -> None:
    grey = np.full((16, 16), 200, np.uint8)
    expected = kind()(Image.fromarray(grey), return_tensors="np").pixel_values
    for array in (grey, grey[None], grey[..., None], np.stack([grey] * 3 + [grey * 0 + 255], axis=-1)):
        assert np.array_equal(kind()(array, return_tensors="np").pixel_values, expected)
    with pytest.raises(ImageError, match="do_convert_rgb"):
        kind(do_convert_rgb=False)(grey)
    with pytest.raises(ImageError, match="do_convert_rgb"):
        kind(do_convert_rgb=False)(Image.fromarray(grey))


@BOTH
def test_exif_turns_files_and_not_pil_images(kind: Any) -> None:
    image = picture(16, 48)
    exif = image.getexif()
    exif[0x0112] = 6
    data = _png(image, exif=exif)
    assert kind()(data)["image_sizes"] == [(48, 16)]
    assert kind()(Image.open(io.BytesIO(data)))["image_sizes"] == [(16, 48)]


def test_fractions_that_are_rescaled_again_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="do_rescale=False"):
        PixtralImageProcessor()(np.random.default_rng(0).random((20, 20, 3)))


def test_the_tensor_class_takes_fractions_unrounded() -> None:
    fractions = torch.rand(3, 40, 50)
    made = PixtralImageProcessorFast(do_rescale=False, do_normalize=False)(fractions, return_tensors="pt")
    expected = torch.nn.functional.interpolate(
        fractions[None], size=(48, 64), mode="bicubic", antialias=True, align_corners=False
    )
    assert torch.equal(made.pixel_values, expected)


@pytest.mark.parametrize("resample", [0, 2, 3, Image.Resampling.BILINEAR, "bicubic"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_the_tensor_class_resizes_every_type(resample: Any, dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.asarray(picture(40, 50)).copy()).permute(2, 0, 1).to(dtype)
    options: Any = {"resample": resample, "do_normalize": False, "do_rescale": False, "return_tensors": "pt"}
    made = PixtralImageProcessorFast()(values, **options).pixel_values.float()
    close = PixtralImageProcessorFast()(values.to(torch.uint8), **options).pixel_values.float()
    assert made.shape == (1, 3, 48, 64)
    # The 8-bit kernel rounds and clamps between its two passes; the others do not.
    assert (made.clamp(0, 255) - close).abs().mean() <= 0.5
    assert torch.equal(made, made.round()) == (dtype != torch.float32 or resample == 0)


def test_a_device_can_be_named() -> None:
    made = PixtralImageProcessorFast(device="cpu")(picture(20, 20), return_tensors="pt")
    assert made.pixel_values.device.type == "cpu"
    with pytest.raises(InputError, match="device"):
        PixtralImageProcessorFast()(picture(20, 20), device="window")


# What is refused


@BOTH
def test_options_that_contradict_each_other(kind: Any) -> None:
    with pytest.raises(InputError, match=r"max_image_tokens.*do_resize"):
        kind()(picture(20, 20), do_resize=False, max_image_tokens=50)
    with pytest.raises(InputError, match=r"mistral.*resample"):
        kind(dialect="mistral", resample=2)


@BOTH
@pytest.mark.parametrize(
    ("option", "kind_of_error"),
    [
        ({"size": {"shortest_edge": 5}}, InputError),
        ({"size": {"longest_edge": 0}}, InputError),
        ({"size": "large"}, InputError),
        ({"patch_size": {"height": 16}}, InputError),
        ({"patch_size": 0}, InputError),
        ({"patch_size": 1.5}, InputError),
        ({"resample": 9}, InputError),
        ({"image_mean": [0.5, 0.5]}, InputError),
        ({"image_std": 0}, InputError),
        ({"rescale_factor": "x"}, InputError),
        ({"do_resize": "yes"}, InputError),
        ({"dialect": "gguf"}, InputError),
        ({"max_image_tokens": 0}, InputError),
        ({"do_center_crop": True}, UnsupportedError),
        ({"crop_size": {"height": 5, "width": 5}}, UnsupportedError),
        ({"do_pad": False}, UnsupportedError),
        ({"pad_size": {"height": 5, "width": 5}}, UnsupportedError),
        ({"shine": 1}, UnsupportedError),
    ],
)
def test_options_that_cannot_be_used_are_named(kind: Any, option: Any, kind_of_error: Any) -> None:
    (name,) = option
    with pytest.raises(kind_of_error, match=name):
        kind(**option)
    with pytest.raises(kind_of_error, match=name):
        kind().preprocess(picture(20, 20), **option)


@BOTH
@pytest.mark.parametrize("tensors", ["tf", "jax", "torch"])
def test_other_frameworks(kind: Any, tensors: str) -> None:
    with pytest.raises(InputError if tensors == "torch" else UnsupportedError, match=tensors):
        kind()(picture(20, 20), return_tensors=tensors)


def test_what_only_one_class_does() -> None:
    with pytest.raises(UnsupportedError, match="channels_last"):
        PixtralImageProcessorFast()(picture(20, 20), data_format="channels_last")
    with pytest.raises(UnsupportedError, match="lanczos"):
        PixtralImageProcessorFast()(picture(20, 20), resample=Image.Resampling.LANCZOS)


@BOTH
@pytest.mark.parametrize("images", [[], None, 5, [picture(4, 4), None], {"image": 1}])
def test_what_is_no_image(kind: Any, images: Any) -> None:
    with pytest.raises(ImageError):
        kind()(images)


@BOTH
def test_a_damaged_image_that_was_opened_lazily(kind: Any) -> None:
    cut = Image.open(io.BytesIO(_png(picture(64, 64))[:2000]))
    with pytest.raises(ImageError, match="damaged or truncated"):
        kind()(cut)


@BOTH
def test_an_image_that_keeps_no_pixel(kind: Any) -> None:
    with pytest.raises(ImageError, match="less than one pixel"):
        kind(size={"longest_edge": 100})(picture(1, 101))
    assert kind(size={"longest_edge": 100})(picture(1, 100))["image_sizes"] == [(16, 112)]


# Files


@BOTH
def test_saving_and_loading(kind: Any, tmp_path: Path) -> None:
    processor = kind(
        size={"longest_edge": 99},
        patch_size=7,
        image_mean=[0.1, 0.2, 0.3],
        dialect="mistral",
        max_image_tokens=50,
    )
    (path,) = processor.save_pretrained(tmp_path / "new" / "folder")
    saved = json.loads(Path(path).read_text("utf-8"))
    assert saved["image_processor_type"] == kind.__name__
    assert saved["dialect"] == "mistral"
    loaded = kind.from_pretrained(tmp_path / "new" / "folder")
    assert loaded == processor != kind()
    assert (
        loaded
        == kind.from_pretrained(path)
        == kind.from_json_file(path)
        == kind.from_dict(processor.to_dict())
    )
    assert loaded == kind.from_pretrained(tmp_path, subfolder="new/folder")
    changed = kind.from_pretrained(path, size={"longest_edge": 64}, do_rescale=False)
    assert (changed.size, changed.do_rescale) == ({"longest_edge": 64}, False)
    made = kind.from_pretrained(path, return_unused_kwargs=True, foo=1)
    assert made == (processor, {"foo": 1})
    with pytest.raises(UnsupportedError, match="foo"):
        kind.from_pretrained(path, foo=1)


def test_the_defaults_are_not_shared() -> None:
    for kind in (PixtralImageProcessor, PixtralImageProcessorFast):
        first: Any = kind()
        first.size["longest_edge"] = 5
        first.image_mean[0] = 9.0
        first.patch_size["height"] = 3
        assert kind() == kind()
        assert kind() != first


def test_attributes_can_be_changed() -> None:
    processor = PixtralImageProcessor()
    processor.size = {"longest_edge": 32}
    processor.patch_size = 8  # type: ignore[assignment]
    assert processor(picture(100, 64))["image_sizes"] == [(32, 24)]


@pytest.mark.filterwarnings("error")
def test_each_class_reads_what_the_other_wrote(tmp_path: Path) -> None:
    PixtralImageProcessorFast(patch_size=14).save_pretrained(tmp_path)
    slow = PixtralImageProcessor.from_pretrained(tmp_path)
    assert slow.patch_size == {"height": 14, "width": 14}
    slow.save_pretrained(tmp_path)
    assert PixtralImageProcessorFast.from_pretrained(tmp_path) == PixtralImageProcessorFast(patch_size=14)


def test_unknown_keys_of_a_file_are_kept_and_said(tmp_path: Path) -> None:
    data = {"image_processor_type": "PixtralImageProcessor", "shine": 3, "nothing": None, "do_pad": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="shine=3") as caught:
        processor = PixtralImageProcessor.from_pretrained(tmp_path)
    assert len(caught) == 1
    assert processor.shine == 3
    assert processor.to_dict()["shine"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PixtralImageProcessor.from_dict(processor.to_dict()) == processor


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        PixtralImageProcessor.from_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    for text, says in (
        ("{", "JSON"),
        ("[]", "object"),
        ('{"image_processor_type": "CLIPImageProcessor"}', "CLIPImageProcessor"),
        ('{"image_processor": 5}', "object"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=says):
            PixtralImageProcessor.from_pretrained(tmp_path)
    path.write_text('{"size": "big"}')
    with pytest.raises(InputError, match="size"):
        PixtralImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        PixtralImageProcessor().save_pretrained(path)
    for keyword in ({"push_to_hub": True}, {"repo_id": "a/b"}):
        with pytest.raises(UnsupportedError, match=next(iter(keyword))):
            PixtralImageProcessor().save_pretrained(tmp_path, **keyword)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        PixtralImageProcessor().push_to_hub("a/b")


@pytest.mark.parametrize("value", [3, "x", [1], None])
def test_key_of_a_file_that_names_an_attribute_is_kept_beside(value: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"extra_options": value, "to_dict": value}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = PixtralImageProcessor.from_pretrained(tmp_path)
    assert processor.extra_options == {"extra_options": value, "to_dict": value}
    assert processor(tiny.image(20, 20), return_tensors="pt")["pixel_values"].numel()
