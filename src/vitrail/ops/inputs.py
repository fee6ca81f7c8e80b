"""Conversion of model inputs (tensors, numpy arrays, lists) to tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.arguments import shown
from vitrail.errors import InputError

IMAGES = "pixel_values must be a tensor (images, channels, height, width) or a list of images of 3 dimensions"


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Any:
    """Convert a list or numpy array to a tensor on `device`; None and tensors are returned unchanged.

    Raises:
        InputError: any other type, ragged rows, or a dtype that models do not compute with.
    """
    if value is not None and not isinstance(value, Tensor):
        if isinstance(value, (str, bytes)) or not (
            hasattr(value, "__array__") or isinstance(value, (list, tuple))
        ):
            raise InputError(f"{name} must be a tensor, an array or lists of numbers; got {shown(value)}.")
        try:
            value = torch.stack(list(value)) if _holds_tensors(value) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{name} cannot become a tensor ({reason}); give rows of one length.") from None
        value = value if device is None else value.to(device)
    if value is not None and value.is_meta and device is not None and device.type != "meta":
        raise InputError(f"{name} is on the meta device and holds no values; the model is on {device}.")
    if value is not None and (value.is_complex() or value.layout != torch.strided or value.is_nested):
        raise InputError(
            f"{name} must be a plain tensor of real numbers, got {value.dtype} as {value.layout}."
        )
    return value


def as_tensors(device: torch.device, **values: Any) -> list[Any]:
    """Convert several inputs, named for messages, with `as_tensor`."""
    return [as_tensor(name, value, device) for name, value in values.items()]


def check_flags(**flags: Any) -> None:
    """Raise InputError unless each is None, True or False (or 1 or 0)."""
    for name, value in flags.items():
        if value is not None and not isinstance(value, (bool, int)):
            raise InputError(f"{name} must be True, False or None; got {shown(value)}.")


def as_pixels(pixel_values: Any, image_sizes: Any) -> tuple[Any, Any]:
    """Return pixel values (N, C, H, W), from a batch or from nested lists as old processors return them, and image sizes.

    Images of different sizes are padded at right and bottom; image_sizes then has their sizes without padding.
    """
    if image_sizes is not None:
        image_sizes = as_tensor("image_sizes", image_sizes, torch.device("cpu"))
        if image_sizes.is_floating_point() or image_sizes.dtype == torch.bool:
            raise InputError(f"image_sizes must be integers, got {image_sizes.dtype}.")
    if pixel_values is None or isinstance(pixel_values, Tensor):
        return as_tensor("pixel_values", pixel_values), image_sizes
    if hasattr(pixel_values, "__array__") and getattr(pixel_values, "ndim", 0) == 4:
        return as_tensor("pixel_values", pixel_values), image_sizes
    images = _images(pixel_values)
    if any(image.dim() != 3 or image.shape[0] != images[0].shape[0] for image in images):
        raise InputError(f"{IMAGES}; got {[tuple(image.shape) for image in images]!s:.200}.")
    if not images:
        raise InputError("pixel_values holds no image; leave it out for text alone.")
    sizes = [tuple(image.shape[1:]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor(sizes) if image_sizes is None and len(set(sizes)) > 1 else image_sizes


def _images(value: Any, depth: int = 0) -> list[Tensor]:
    """Return the images in nested lists, in order; None stands for a text-only row."""
    if value is None:
        return []
    if hasattr(value, "__array__") or (isinstance(value, (list, tuple)) and _depth(value) == 3):
        found = as_tensor("pixel_values", value)
        return list(found) if found.dim() == 4 else [found]
    if not isinstance(value, (list, tuple)) or depth > 4:
        raise InputError(f"{IMAGES}; got {shown(value)}.")
    return [image for part in value for image in _images(part, depth + 1)]


def _depth(value: Any) -> int:
    """Return the nesting depth of numbers in lists; 0 if the innermost value is not a number."""
    depth = 0
    while isinstance(value, (list, tuple)) and value and depth < 8:
        value, depth = value[0], depth + 1
    return depth if isinstance(value, (int, float)) else 0


def _holds_tensors(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(part, Tensor) for part in value)
    )


def replace_rows(rows: Tensor, where: Tensor, features: Tensor) -> Tensor:
    """Replace the rows of `rows` (…, D) selected by `where` (…) with `features` (n, D), in order."""
    wanted = int(where.sum())
    if wanted != len(features):
        raise InputError(
            f"the prompt has {wanted} image tokens, the images have {len(features)} features; process text and "
            "images together, with the processor of this checkpoint."
        )
    return rows.masked_scatter(where[..., None], features.to(device=rows.device, dtype=rows.dtype))


def chosen_layers(layer: Any, depth: int) -> Sequence[int]:
    """Return `vision_feature_layer` as a list; raise InputError for a layer outside a tower of `depth` blocks."""
    layers = [layer] if isinstance(layer, int) else list(layer) if isinstance(layer, (list, tuple)) else []
    if not layers or any(not isinstance(one, int) or isinstance(one, bool) for one in layers):
        raise InputError(f"vision_feature_layer must be an integer or a list of them; got {shown(layer)}.")
    for one in layers:
        if not -depth - 1 <= one <= depth:
            raise InputError(f"vision_feature_layer {one} is outside the tower's {depth} layers.")
    return layers
