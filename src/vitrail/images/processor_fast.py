"""PixtralImageProcessorFast: images resized, normalised and padded as tensors, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.arguments import checked_except
from vitrail.errors import ImageError, InputError, UnsupportedError
from vitrail.images.arrays import FIRST, Pixels, is_array, to_levels
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.grid import Grid
from vitrail.images.load import check_size, flatten_sources, from_levels, opened, to_rgb
from vitrail.images.processor_base import BaseImageProcessor
from vitrail.images.request import ImageRequest, image_request
from vitrail.images.resize import BICUBIC, resize_cubic, resize_tensor
from vitrail.images.settings import (
    IMAGE_MEAN,
    IMAGE_STD,
    LONGEST_EDGE,
    PATCH_SIZE,
    ImageSettings,
    as_patch_size,
    as_size,
)

if TYPE_CHECKING:
    import torch

_DEFAULTS: dict[str, Any] = {
    "crop_size": None,
    "data_format": FIRST,
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
    "input_data_format": None,
    "pad_size": None,
    "patch_size": {"height": PATCH_SIZE, "width": PATCH_SIZE},
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
    "return_tensors": None,
    "size": {"longest_edge": LONGEST_EDGE},
}


@checked_except("__init__", "preprocess", "from_dict")
class PixtralImageProcessorFast(BaseImageProcessor):
    """Prepare images as pixel_values (N,3,H,W) float32 and image_sizes (N,2), resized as tensors.

    Args:
        kwargs: the options of PixtralImageProcessor, and `device`, that of the computation and the result. Resampling
            is nearest, bilinear or bicubic.

    The result is that of transformers' class of this name on a CPU, on every device: antialiased resizing of 8-bit
    tensors, then (x − 255·mean) / (255·std) in float32. It differs from PIL's by a level or two in ordinary images, by
    more in pure noise. torchvision is not needed.
    """

    option_names = tuple(_DEFAULTS)
    do_resize: bool
    size: dict[str, int]
    patch_size: dict[str, int]
    resample: Any
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | list[float]
    image_std: float | list[float]
    do_convert_rgb: bool

    def __init__(self, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name, default) for name, default in self.own_options.items()}
        mine = {name: kwargs.pop(name) for name in _DEFAULTS if name in kwargs}
        super().__init__(**kwargs)
        for name, default in _DEFAULTS.items():
            value = mine.get(name)
            if value is None:
                value = list(default) if isinstance(default, list) else default
            setattr(self, name, value)
        self.size = as_size(self.size)
        self.patch_size = as_patch_size(self.patch_size)
        self.dialect = own["dialect"]
        self.max_image_tokens = own["max_image_tokens"]
        self.settings({})  # raises for unusable options now, not at the first image

    @property
    def is_fast(self) -> bool:
        """True: images are processed as tensors."""
        return True

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Prepare one image, a list, or a list of lists.

        Args:
            images: as PixtralImageProcessor.preprocess.
            kwargs: as there, and `device`.

        Returns:
            pixel_values, always one tensor ("np": an array), and image_sizes, a list of (height, width) if
            return_tensors is None. One row per image.

        Raises:
            ImageError: no usable image.
            UnsupportedError: unknown options.
        """
        import torch

        settings = self.settings(kwargs)
        if settings.data_format not in (None, FIRST):
            raise UnsupportedError(
                "data_format='channels_last' is not supported for tensors; use PixtralImageProcessor."
            )
        flat = flatten_sources(images)
        device = _device(kwargs.get("device", getattr(self, "device", None)), flat)
        grids, rows = [], []
        height = width = 0
        with image_request() as request:
            for source in flat:  # one after the other: only the row of an image opened here is kept
                row, grid = _row(opened(source), settings, device, request)
                rows.append(row)
                grids.append(grid)
                height, width = max(height, grid.height), max(width, grid.width)
                request.check_batch(len(rows), height, width, settings.itemsize)
        dtype = torch.uint8 if all(row.dtype == torch.uint8 for row in rows) else torch.float32
        batch = torch.zeros((len(rows), 3, height, width), dtype=dtype, device=device)
        for room, row in zip(batch, rows, strict=True):
            room[:, : row.shape[1], : row.shape[2]] = row
        data = {"pixel_values": batch, "image_sizes": [(grid.height, grid.width) for grid in grids]}
        return BatchFeature(data, settings.return_tensors).with_grids(grids)


def _row(
    image: Any, settings: ImageSettings, device: torch.device, request: ImageRequest
) -> tuple[torch.Tensor, Grid]:
    """Return an image (3,h,w) as input of the model, and its grid."""
    grid = settings.grid(*_measure(image, settings, request))
    values = _resized(_tensor(image, settings).to(device), grid, settings)
    return _normalized(values, settings), grid


def _measure(image: Any, settings: ImageSettings, request: ImageRequest) -> tuple[int, int]:
    """Return (height, width) after a check of the limits."""
    found = Pixels.of(image, settings.input_data_format) if is_array(image) else image
    check_size(found.height, found.width, request.limits)
    return found.height, found.width


def _device(wanted: Any, images: list[Any]) -> torch.device:
    """Return the wanted device, else that of the first tensor, else the CPU."""
    import torch

    if wanted is None:
        return next(
            (image.device for image in images if isinstance(image, torch.Tensor)), torch.device("cpu")
        )
    try:
        return torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={wanted!r} is no device of torch: {error}") from error


def _tensor(image: Any, settings: ImageSettings) -> torch.Tensor:
    """Return the image as (3,H,W): whole numbers unchanged, real ones in float32."""
    import torch

    if not is_array(image):
        if image.mode != "RGB" and not settings.do_convert_rgb:
            raise ImageError(
                f"An image in RGB was expected, this one is in {image.mode}; set do_convert_rgb."
            )
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).contiguous()
    pixels = Pixels.of(image, settings.input_data_format)
    if pixels.layout is not None and pixels.values.shape[0 if pixels.layout == FIRST else 2] == 3:
        values = pixels.values if isinstance(pixels.values, torch.Tensor) else torch.tensor(pixels.values)
        values = values if pixels.layout == FIRST else values.permute(2, 0, 1)
        return (values.float() if values.is_floating_point() else values).contiguous()
    if not settings.do_convert_rgb:
        raise ImageError(
            "A tensor with 3 channels was expected; set do_convert_rgb for grey and transparent ones."
        )
    levels, fractions = to_levels(pixels.channels_last())
    made = torch.from_numpy(np.array(from_levels(levels))).permute(2, 0, 1).contiguous()
    return made.float() / 255 if fractions else made


def _resized(values: torch.Tensor, grid: Grid, settings: ImageSettings) -> torch.Tensor:
    import torch

    size = (grid.height, grid.width)
    if not settings.do_resize:
        return values
    if settings.dialect != "mistral":
        return resize_tensor(values, size, settings.resample)
    cubic = resize_cubic(values.permute(1, 2, 0).cpu().contiguous().numpy(), size)
    return torch.from_numpy(cubic).permute(2, 0, 1).to(values.device)


def _normalized(values: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    """Rescale and normalise in one step, fused as in transformers."""
    import torch

    if not settings.do_normalize:
        return values * settings.rescale_factor if settings.do_rescale else values
    mean = torch.tensor(settings.image_mean, device=values.device)
    std = torch.tensor(settings.image_std, device=values.device)
    if settings.do_rescale:
        mean, std = mean * (1.0 / settings.rescale_factor), std * (1.0 / settings.rescale_factor)
    return (values.to(torch.float32) - mean[:, None, None]).div_(std[:, None, None])
