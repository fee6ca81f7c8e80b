"""PixtralImageProcessor: images resized by PIL, rescaled, normalised and padded to one batch.

The class for tensors is in processor_fast.py and can be imported from here as well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitrail.arguments import checked_except
from vitrail.errors import ImageError, OutOfMemory
from vitrail.images.arrays import FIRST, LAST, Array, Pixels, to_levels
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.grid import Grid
from vitrail.images.load import check_size, flatten_sources, from_levels, opened, to_rgb
from vitrail.images.processor_base import BaseImageProcessor
from vitrail.images.processor_fast import PixtralImageProcessorFast
from vitrail.images.request import ImageRequest, image_request
from vitrail.images.resize import resize_cubic
from vitrail.images.settings import (
    IMAGE_MEAN,
    IMAGE_STD,
    LONGEST_EDGE,
    PATCH_SIZE,
    ImageSettings,
    as_patch_size,
    as_size,
)

__all__ = ["PixtralImageProcessor", "PixtralImageProcessorFast"]


@checked_except("__init__", "preprocess", "from_dict")
class PixtralImageProcessor(BaseImageProcessor):
    """Prepare images as pixel_values (N,3,H,W) float32 and image_sizes (N,2), with PIL's resizing.

    Args:
        do_resize: fit into `size` and stretch each side up to whole patches.
        size: {"longest_edge": n} or {"height": h, "width": w} in pixels, or a number.
        patch_size: {"height": p, "width": p} or a number. For a model that merges patches, patch_size ·
            spatial_merge_size, as from PixtralProcessor.
        resample: PIL's filter.
        do_rescale, rescale_factor: the factor on 0…255.
        do_normalize, image_mean, image_std: per channel, after rescaling.
        do_convert_rgb: any mode to RGB, transparency on white.
        dialect: "hf" (today's transformers), "hf-ceil" (up to 4.49) or "mistral" (mistral-common's rounding and
            resizing).
        max_image_tokens: the most tokens of an image at this patch size.

    Raises:
        UnsupportedError: another keyword.

    The arithmetic is in docs/formats.md, "Resizing and normalising".
    """

    option_names = (
        "do_resize",
        "size",
        "patch_size",
        "resample",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_convert_rgb",
    )

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        patch_size: dict[str, int] | None = None,
        resample: Any = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: int | float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool = True,
        *,
        dialect: str = "hf",
        max_image_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = as_size(LONGEST_EDGE if size is None else size)
        self.patch_size = as_patch_size(PATCH_SIZE if patch_size is None else patch_size)
        self.resample = resample
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(IMAGE_MEAN) if image_mean is None else image_mean
        self.image_std = list(IMAGE_STD) if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb
        self.dialect = dialect
        self.max_image_tokens = max_image_tokens
        self.settings({})  # raises for unusable options now, not at the first image

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int] | None = None,
        patch_size: dict[str, int] | None = None,
        resample: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: Any = None,
        data_format: Any = FIRST,
        input_data_format: Any = None,
        *,
        dialect: str | None = None,
        max_image_tokens: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one image, a list, or a list of lists; options that are None come from the object.

        Args:
            images: PIL images, arrays and tensors, as they are; paths, URLs, data: URLs and bytes, turned upright by
                EXIF.
            return_tensors: "pt", "np", or None for lists.
            data_format: "channels_first", "channels_last", or None for that of the images.

        Returns:
            pixel_values, padded with zeros at the right and below to the largest height and width, after normalising;
            image_sizes, the (height, width) before padding. One row per image.

        Raises:
            ImageError: no usable image.
            InputError: options that cannot be used.
        """
        given = {
            "do_resize": do_resize,
            "size": size,
            "patch_size": patch_size,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_convert_rgb": do_convert_rgb,
            "return_tensors": return_tensors,
            "input_data_format": input_data_format,
            "dialect": dialect,
            "max_image_tokens": max_image_tokens,
        }
        settings = self.settings(
            {**given, **kwargs, "data_format": FIRST if data_format is None else data_format}
        )
        with image_request() as request:
            # One after the other: only the prepared form of an image opened here is kept.
            prepared: list[_Prepared] = []
            height = width = 0
            for source in flatten_sources(images):
                prepared.append(image := _Prepared.of(opened(source), settings, request))
                height, width = max(height, image.grid.height), max(width, image.grid.width)
                request.check_batch(len(prepared), height, width, settings.itemsize)
            grids = [image.grid for image in prepared]
            batch = _batch(prepared, settings)
        layout = settings.data_format if data_format is not None else _common_layout(prepared)
        if layout == LAST:
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        sizes = [(grid.height, grid.width) for grid in grids]
        values = list(batch) if settings.return_tensors is None else batch
        return BatchFeature(
            {"pixel_values": values, "image_sizes": sizes}, settings.return_tensors
        ).with_grids(grids)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One image of a call at its final size.

    Attributes:
        levels: (h,w,3).
        fractions: whether its numbers 0…255 stand for fractions from 0 to 1.
        whole: whether the source had whole numbers.
        layout: the place of the source's channels.
    """

    levels: Array
    fractions: bool
    grid: Grid
    whole: bool
    layout: str

    @classmethod
    def of(cls, image: Any, settings: ImageSettings, request: ImageRequest) -> _Prepared:
        source = _Source(image, settings, request)
        grid = settings.grid(source.height, source.width)
        levels, fractions = source.levels(grid)
        return cls(levels, fractions, grid, source.whole, source.layout)


class _Source:
    """One image of a call, measured."""

    def __init__(self, image: Any, settings: ImageSettings, request: ImageRequest) -> None:
        self._settings = settings
        if isinstance(image, Image.Image):
            self._image: Image.Image | None = image
            self.height, self.width, self.layout = image.height, image.width, LAST
            self.whole = True
        else:
            self._image = None
            self._pixels = Pixels.of(image, settings.input_data_format)
            self.height, self.width = self._pixels.height, self._pixels.width
            self.layout = self._pixels.layout or LAST
            self.whole = str(image.dtype).removeprefix("torch.") == "uint8"
        check_size(self.height, self.width, request.limits)

    def levels(self, grid: Grid) -> tuple[Array, bool]:
        """Return the resized image (h,w,3), and whether its numbers 0…255 stand for fractions from 0 to 1."""
        settings = self._settings
        image, fractions = self._rgb()
        if isinstance(image, np.ndarray):
            return image, fractions
        if settings.dialect == "mistral" and settings.do_resize:
            return resize_cubic(np.asarray(image), (grid.height, grid.width)), fractions
        if settings.do_resize and image.size != (grid.width, grid.height):
            image = image.resize((grid.width, grid.height), Image.Resampling(settings.resample))
        return np.asarray(image), fractions

    def _rgb(self) -> tuple[Image.Image | Array, bool]:
        """Return the image in RGB; real numbers without resizing stay an array (H,W,3)."""
        converts = self._settings.do_convert_rgb
        if self._image is not None:
            if not converts and self._image.mode != "RGB":
                raise ImageError(
                    f"An image in RGB was expected, this one is in {self._image.mode}; set do_convert_rgb."
                )
            return to_rgb(self._image), False
        values = self._pixels.channels_last()
        if values.shape[2] != 3 and not converts:
            raise ImageError(
                f"An array with 3 channels was expected, this one has {values.shape[2]}; set do_convert_rgb."
            )
        if not self.whole and self._settings.do_rescale and values.min() >= 0 and values.max() <= 1:
            warnings.warn(
                "An image's numbers lie between 0 and 1 and are rescaled once more, as transformers does; "
                "give do_rescale=False.",
                stacklevel=6,
            )
        if values.shape[2] == 3 and not self._settings.do_resize and not self.whole:
            return values, False
        levels, fractions = to_levels(values)
        return from_levels(levels), fractions


def _batch(images: list[_Prepared], settings: ImageSettings) -> Array:
    """Return the batch (N,3,H,W), each image at the top left, zeros elsewhere."""
    height, width = max(image.grid.height for image in images), max(image.grid.width for image in images)
    untouched = settings.itemsize == 1
    dtype = np.uint8 if untouched and all(image.whole for image in images) else np.float32
    try:
        batch = np.zeros((len(images), 3, height, width), dtype)
    except (MemoryError, ValueError) as error:  # ValueError: numpy's for more than the address space
        raise OutOfMemory(
            f"{len(images)} images of {height}×{width} pixels need more memory than there is; make them smaller."
        ) from error
    tables = {fractions: settings.table(fractions).astype(dtype) for fractions in (False, True)}
    for room, image in zip(batch, images, strict=True):
        levels, fractions, grid = image.levels, image.fractions, image.grid
        for channel in range(3):
            target = room[channel, : grid.height, : grid.width]
            if levels.dtype == np.uint8:
                np.take(tables[fractions][channel], levels[..., channel], out=target, mode="clip")
            else:
                values = levels[..., channel]
                target[:] = settings.apply(values * np.float32(1 / 255) if fractions else values, channel)
    return batch


def _common_layout(images: list[_Prepared]) -> str:
    layouts = {image.layout for image in images}
    if len(layouts) > 1:
        raise ImageError(
            "With data_format=None all images have their channels in the same place; these differ."
        )
    return layouts.pop()
