"""Architecture of the embedded model, and the training module: the model plus auxiliary heads that are not shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.configs import Mistral3Config, MistralConfig, PixtralVisionConfig
from vitrail.generate.uncached import run_uncached
from vitrail.images.grid import Grid
from vitrail.model.record import Record
from vitrail.model.vlm import Mistral3ForConditionalGeneration
from vitrail.ops.linear import linear
from vitrail.reader import batches, charset, init_weights
from vitrail.reader.batches import Batch

_POINTERS = (0, 3)  # heads trained to point at the next character: the first of each key/value head
_POINTING = (1, 2)  # decoder layers with pointing heads
_LOCATED = 1  # decoder layer after which image tokens predict their row and column
_GRID = batches.LONGEST_EDGE // batches.UNIT
_CLASSES = charset.first_place()  # classes of a patch: everything but position tokens


def config() -> Mistral3Config:
    """Return the configuration: a 128 × 6 tower on patches of 8, merged 2 × 2; a 192 × 4 character decoder."""
    vision = PixtralVisionConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=batches.LONGEST_EDGE,
        patch_size=batches.PATCH,
        # Small images: the longest rotary wavelength equals the longest edge.
        rope_theta=100.0,
    )
    text = MistralConfig(
        vocab_size=charset.VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=charset.PAD,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        sliding_window=None,
    )
    return Mistral3Config(
        vision_config=vision,
        text_config=text,
        image_token_index=charset.IMG,
        spatial_merge_size=batches.UNIT // batches.PATCH,
        tie_word_embeddings=True,
    )


class Reader(nn.Module):
    """The model in training, with auxiliary heads that are not shipped.

    `heads` predict the character under each patch and its neighbours; `row` and `column` predict the position of an image
    token in the decoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = Mistral3ForConditionalGeneration(config())
        tower = self.model.vision_tower
        width = tower.config.hidden_size
        init_weights.fill_normal(self)
        init_weights.patch_filters(tower.patch_conv.weight)
        init_weights.neighbour_heads(
            list(tower.transformer.layers), tower.config.num_attention_heads, tower.config.rope_theta
        )
        nn.init.normal_(self.table, std=0.05)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.heads = nn.Linear(width, len(batches.OFFSETS) * _CLASSES)
        self.row = nn.Linear(self.table.shape[1], _GRID)
        self.column = nn.Linear(self.table.shape[1], _GRID)
        for head in (self.heads, self.row, self.column):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @property
    def table(self) -> nn.Parameter:
        """Embeddings (V, D) of the characters, tied to the LM head."""
        weight = self.model.get_input_embeddings().weight
        if not isinstance(weight, nn.Parameter):
            raise TypeError("the embedding has no trainable table.")
        return weight

    def freeze(self, layers: int) -> None:
        """Freeze the convolution and the lowest `layers` of the tower; 0 trains everything."""
        tower = self.model.vision_tower
        lower = [tower.patch_conv, tower.ln_pre, *list(tower.transformer.layers)[:layers]] if layers else []
        self.requires_grad_(True)
        for module in lower:
            module.requires_grad_(False)

    def loss(
        self, batch: Batch, *, patches: float, answer: float, pointer: float = 0.0, located: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the losses (any weight may be 0), and metrics to log.

        Args:
            patches: weight of predicting the characters under and beside each patch.
            answer: weight of the next-token loss of the answer.
            pointer: weight of the attention loss of the pointing heads; no effect without an answer.
            located: weight of predicting row and column of image tokens in the decoder; no effect without an answer.
        """
        tower = self.model.vision_tower
        grids = tower.grids(batch.pixel_values, batch.image_sizes)
        features = tower.encode(batch.pixel_values, grids)
        total = features.new_zeros(())
        figures: dict[str, float] = {"images": float(len(batch.texts)), "patches": float(len(features))}
        if patches:
            loss, found = self._patch_loss(features, batch.characters)
            total = total + patches * loss
            figures |= found
        if answer:
            rows = _shown(self.model.multi_modal_projector([features], grids), batch)
            loss, found = self._answer_loss(rows, batch, pointer, located)
            total = total + answer * loss
            figures |= found
        return total, figures

    def _patch_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        middle = batches.OFFSETS.index(0)
        written = (labels[:, middle] != charset.PAD).nonzero().squeeze(1)
        # Empty patches are many and easy: every third one is enough.
        empty = (labels[:, middle] == charset.PAD).nonzero().squeeze(1)[::3]
        seen = self.norm(features)
        logits = self.heads(seen[written]).unflatten(1, (len(batches.OFFSETS), -1)).transpose(1, 2)
        target = labels[written]
        loss = F.cross_entropy(logits, target)
        rows = slice(middle * _CLASSES, (middle + 1) * _CLASSES)
        if len(empty):
            blank = linear(seen[empty], self.heads.weight[rows], self.heads.bias[rows])
            loss = loss + 0.3 * F.cross_entropy(blank, labels[empty, middle])
        right = (logits.argmax(dim=1) == target).float().mean(dim=0).tolist()
        names = ("before2", "before", "here", "after")
        return loss, {"patch_loss": float(loss.detach()), **dict(zip(names, right, strict=True))}

    def _answer_loss(
        self, rows: Tensor, batch: Batch, pointer: float, located: float
    ) -> tuple[Tensor, dict[str, float]]:
        packed = prompts(batch)
        hidden = self.model.embed(packed.ids, rows)
        record = Record(weights=pointer > 0, hidden=located > 0)
        logits = run_uncached(self.model, hidden, packed.lengths, logits_indices=packed.keep, capture=record)
        scores = F.log_softmax(logits, dim=1)
        first, second, share = (
            torch.from_numpy(np.concatenate([getattr(answer, name) for answer in batch.answers]))
            for name in ("first", "second", "share")
        )
        lower, upper = (-scores.gather(1, ids[:, None]).squeeze(1) for ids in (first, second))
        loss = (lower + share * (upper - lower)).mean()
        figures = {"answer_loss": float(loss.detach())} | _rates(scores.argmax(dim=1), first, second)
        if pointer:
            missed = pointer_loss([record.attentions[layer] for layer in _POINTING], batch)
            loss = loss + pointer * missed
            figures["point"] = float(missed.detach())
        if located:
            known = record.hidden_states[_LOCATED][packed.ids == charset.IMG]
            known = F.rms_norm(known, known.shape[-1:])
            sizes = [
                size for size, shown in zip(batch.image_sizes.tolist(), batch.shown, strict=True) if shown
            ]
            places = torch.cat([_grid_places(size) for size in sizes])
            lost = F.cross_entropy(self.row(known), places[:, 0]) + F.cross_entropy(
                self.column(known), places[:, 1]
            )
            loss = loss + located * lost
            figures["locate"] = float(lost.detach())
        return loss, figures


@dataclass(frozen=True, slots=True)
class Packed:
    """Questions and answers of a batch, packed: ids (L,), rows that predict an answer (n,), rows per image."""

    ids: Tensor
    keep: Tensor
    lengths: list[int]


def prompts(batch: Batch) -> Packed:
    """Pack question and answer of every image into one sequence of ids; row keep[i] predicts the i-th answer id."""
    ids: list[int] = []
    keep: list[int] = []
    lengths = []
    for number, (question, answer) in enumerate(zip(batch.questions, batch.answers, strict=True)):
        image = image_ids(batch.image_sizes[number].tolist()) if batch.shown[number] else ()
        prompt = [charset.BOS, charset.INST, *image, *charset.encode(question), charset.END_INST]
        first = len(ids) + len(prompt) - 1
        keep += range(first, first + len(answer.first))
        ids += [*prompt, *answer.written[:-1].tolist()]
        lengths.append(len(prompt) + len(answer.first) - 1)
    return Packed(torch.tensor(ids), torch.tensor(keep), lengths)


def pointer_loss(layers: Sequence[Sequence[Tensor]], batch: Batch) -> Tensor:
    """Return the loss of the pointing heads: attention on the character that the next id belongs to.

    Args:
        layers: attention weights, (A, T, T) per image, of each layer with pointing heads.

    Returns:
        Mean of −log(attention weight on the tokens that hold a part of the character).
    """
    found: list[Tensor] = []
    start = 0
    for number, (size, text) in enumerate(zip(batch.image_sizes.tolist(), batch.texts, strict=True)):
        rows, columns = size[0] // batches.PATCH, size[1] // batches.PATCH
        holds = _holders(batch.places[start : start + rows * columns].view(rows, columns), len(text))
        start += rows * columns
        about = torch.from_numpy(batch.answers[number].about)
        if not (about >= 0).any():  # no text, or a question on another topic
            continue
        known = (about >= 0) & holds.any(dim=1)[about]
        last = (
            _grid(size).tokens + 2 + len(batch.questions[number])
        )  # the row of [/INST] predicts the first id
        asking = (last + torch.arange(len(about)))[known]
        for layer in layers:
            weights = layer[number][list(_POINTERS)][:, asking, 2 : 2 + holds.shape[1]]
            found.append(((weights * holds[about[known]]).sum(dim=-1) + 1e-4).log().flatten())
    return -torch.cat(found).mean() if found else torch.zeros(())


def _rates(guess: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """Return shares of correct ids: characters, and positions (either of the two nearest)."""
    right = ((guess == first) | (guess == second)).float()
    is_place = first >= charset.first_place()
    return {"letters": float(right[~is_place].mean()), "places": float(right[is_place].mean())}


def _shown(rows: Tensor, batch: Batch) -> Tensor:
    """Return the rows of images that are shown in their prompts."""
    if all(batch.shown):
        return rows
    counts = [_grid(size).image_tokens for size in batch.image_sizes.tolist()]
    parts = torch.split(rows, counts)
    return torch.cat([part for part, shown in zip(parts, batch.shown, strict=True) if shown])


def _grid_places(size: Sequence[int]) -> Tensor:
    """Return row and column (n, 2) of an image's tokens."""
    grid = _grid(size)
    return torch.cartesian_prod(torch.arange(grid.rows), torch.arange(grid.cols))


def _holders(places: Tensor, characters: int) -> Tensor:
    """Return bool (characters, image tokens with their breaks): which tokens cover a part of which character."""
    merge = batches.UNIT // batches.PATCH
    grid = Grid.of_size(places.shape[0], places.shape[1], merge)
    y, x = (places >= 0).nonzero(as_tuple=True)
    holds = torch.zeros(characters, grid.tokens, dtype=torch.bool)
    holds[places[y, x], (y // merge) * (grid.cols + 1) + x // merge] = True
    return holds


def image_ids(size: Sequence[int]) -> Sequence[int]:
    """Return the ids for an image of (height, width) pixels: [IMG] per merged patch, [IMG_BREAK] per row, [IMG_END] last."""
    return _grid(size).expand(charset.IMG, charset.IMG_BREAK, charset.IMG_END)


def _grid(size: Sequence[int]) -> Grid:
    return Grid.of_size(size[0], size[1], batches.UNIT)
