"""Prompt: the batch of one call, without padding and with checked ids.

Letters: B prompts · T positions of the padded batch · L positions of one prompt · D width · N images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitrail.configs.generation import GenerationConfig
from vitrail.errors import ContextError, InputError
from vitrail.generate.features import ImageFeatures
from vitrail.generate.past import CacheCall, Past
from vitrail.generate.protocol import GeneratingModel
from vitrail.ops.inputs import as_pixels, as_tensor, replace_rows


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts.

    Attributes:
        ids: int64 (B, T) as passed, padding included; (B, 0) with embeddings only.
        kept: bool (B, T), False at padding.
        rows: ids (L,) of each prompt without padding, on the host; empty with embeddings only.
        embeds: (L, D) per prompt, or None.
        pixel_values, image_sizes: (N,3,H,W) and (N,2), or None.
        past: cached positions of each row.
    """

    ids: Tensor
    kept: Tensor
    rows: tuple[Tensor, ...]
    embeds: tuple[Tensor, ...] | None = None
    pixel_values: Tensor | None = None
    image_sizes: Any = None
    past: Past = field(default_factory=Past)

    @property
    def batch(self) -> int:
        """B, the number of prompts."""
        return self.kept.shape[0]

    @property
    def width(self) -> int:
        """T, the positions of the padded batch."""
        return self.kept.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Positions of each prompt, cached ones included."""
        return [int(n) for n in self.past.join(self.kept).sum(dim=1).tolist()]

    def whole(self, n: int) -> list[int]:
        """Return the ids of prompt n, cached ones included."""
        return [*self.past.ids_before(n), *self.rows[n].tolist()]


def count_ids(ids: Tensor, wanted: int | None) -> int:
    """Return how often an id occurs; 0 for None."""
    return 0 if wanted is None else int((ids == wanted).sum())


def read_prompt(
    model: GeneratingModel, inputs: Tensor | None, given: Mapping[str, Any], config: GenerationConfig
) -> Prompt:
    """Check and unpad the inputs of generate().

    Raises:
        InputError: missing, duplicate or ill-shaped inputs, an empty prompt, or images for a text-only model.
        ContextError: an id outside the vocabulary.
    """
    given = _tensors(model, given)
    ids = _ids(model, as_tensor("input_ids", inputs, model.device), given, config)
    embeds = given.get("inputs_embeds")
    if embeds is not None and (
        embeds.dim() != 3
        or not embeds.is_floating_point()
        or (ids.shape[1] and embeds.shape[:2] != ids.shape)
    ):
        raise InputError(
            f"inputs_embeds must have the shape (batch, positions, width) and fit input_ids, got "
            f"{tuple(embeds.shape)} and {tuple(ids.shape)}."
        )
    shape = ids.shape if embeds is None else embeds.shape[:2]
    call = CacheCall.read(given, int(shape[0]), int(shape[1]))
    kept = _kept(call.new_mask, ids, (int(shape[0]), int(shape[1])), config)
    rows = tuple(row[keep] for row, keep in zip(ids.cpu(), kept, strict=True)) if ids.shape[1] else ()
    past = call.past(model.kv_geometry, kept, rows, config.cache_dtype)
    pixel_values = given.get("pixel_values")
    if pixel_values is not None and embeds is not None:
        embeds, pixel_values = _with_images(model, embeds, pixel_values, given.get("image_sizes")), None
    return Prompt(
        ids=ids,
        kept=kept,
        rows=rows or tuple(torch.empty(0, dtype=torch.long) for _ in range(shape[0])),
        embeds=None
        if embeds is None
        else tuple(e[k.to(e.device)] for e, k in zip(embeds, kept, strict=True)),
        pixel_values=pixel_values,
        image_sizes=given.get("image_sizes"),
        past=past,
    )


def _tensors(model: GeneratingModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the model's inputs to tensors."""
    names = ("input_ids", "attention_mask", "inputs_embeds", "cache_position")
    found = {name: as_tensor(name, given.get(name), model.device) for name in names}
    pixels, sizes = as_pixels(given.get("pixel_values"), given.get("image_sizes"))
    return {**given, **found, "pixel_values": pixels, "image_sizes": sizes}


@torch.no_grad()
def _with_images(model: GeneratingModel, embeds: Tensor, pixel_values: Tensor, image_sizes: Any) -> Tensor:
    """Replace embeddings equal to the image token's by the images' features, as in forward()."""
    features = ImageFeatures(model, pixel_values, image_sizes)
    marker = model.embed(torch.tensor([model.image_token_id or 0], device=model.device)).to(embeds)
    return replace_rows(embeds, torch.eq(embeds, marker).all(dim=-1), features.rows(0, features.total))


def _ids(
    model: GeneratingModel, inputs: Tensor | None, given: Mapping[str, Any], config: GenerationConfig
) -> Tensor:
    ids = given.get("input_ids")
    if inputs is not None:
        if ids is not None:
            raise InputError("generate() got its prompt twice, as first argument and as input_ids; give one.")
        ids = inputs
    embeds = given.get("inputs_embeds")
    if ids is None and isinstance(embeds, Tensor):
        return torch.empty(embeds.shape[0], 0, dtype=torch.long, device=embeds.device)
    if ids is None and config.bos_token_id is not None:
        ids = torch.tensor([[config.bos_token_id]], device=model.device)
    if ids is None:
        raise InputError("generate() needs input_ids as a tensor (batch, positions), got nothing.")
    if ids.dim() != 2 or ids.shape[0] == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(
            f"input_ids must be whole numbers (batch, positions), got {ids.dtype} {tuple(ids.shape)}."
        )
    vocabulary = model.vocab_size
    if ids.numel() and (int(ids.max()) >= vocabulary or int(ids.min()) < 0):
        wrong = int(ids.max()) if int(ids.max()) >= vocabulary else int(ids.min())
        raise ContextError(
            f"id {wrong} is outside the model's vocabulary of {vocabulary}; the tokenizer belongs to another "
            "model."
        )
    found: Tensor = ids.long()
    return found


def _kept(mask: Tensor | None, ids: Tensor, shape: tuple[int, int], config: GenerationConfig) -> Tensor:
    """Return bool (B, T) on the host; without a mask, pad_token_id is padding (unless it is an EOS id)."""
    if mask is None:
        pad = config.pad_token_id
        if ids.shape[1] and pad is not None and pad not in config.eos_token_ids:
            kept = ids.ne(pad).cpu()
        else:
            kept = torch.ones(shape, dtype=torch.bool)
    elif mask.dim() != 2 or tuple(mask.shape) != shape:
        raise InputError(f"attention_mask must have the prompt's shape {shape}, got {tuple(mask.shape)}.")
    else:
        kept = mask.to(device="cpu", dtype=torch.bool)
    empty = (~kept.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"prompt {empty[0]} has no position that is not padding; leave it out or give it text."
        )
    return kept
