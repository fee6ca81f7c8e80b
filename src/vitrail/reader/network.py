"""The reader's architecture, and the module that trains it: model plus heads that are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import Mistral3Config, MistralConfig, PixtralVisionConfig
from ..model.record import Record
from ..model.vlm import Mistral3ForConditionalGeneration
from ..ops.linear import linear
from ..ops.segments import Segments
from ..ops.step import Step
from . import batches, charset, start
from .batches import Batch

ORDER = 64
"""Places in the reading order that the training heads tell apart; the last one stands for all beyond."""
_POINTERS = (0, 3)  # heads that learn to point: the first of each key/value head


def config() -> Mistral3Config:
    """The embedded model: a tower of 128 × 6 on patches of 8, merged 2 × 2; a decoder of 192 × 3 over characters."""
    vision = PixtralVisionConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=batches.LONGEST_EDGE,
        patch_size=batches.PATCH,
        # Small pictures: the slowest wave of the rotary embedding is as long as the longest edge.
        rope_theta=100.0,
    )
    text = MistralConfig(
        vocab_size=charset.VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=3,
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
    """The model in training, with heads that are not shipped.

    `heads` name the character under each patch and its neighbours, `order` its place in the reading order, `count`
    how many characters of the answer are written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = Mistral3ForConditionalGeneration(config())
        tower = self.model.vision_tower
        width = tower.config.hidden_size
        start.plain(self)
        start.patch_filters(tower.patch_conv.weight)
        start.neighbour_heads(
            list(tower.transformer.layers), tower.config.num_attention_heads, tower.config.rope_theta
        )
        nn.init.normal_(self.table, std=0.05)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.heads = nn.Linear(width, len(batches.OFFSETS) * charset.VOCAB_SIZE)
        self.order = nn.Linear(width, ORDER)
        self.count = nn.Linear(self.table.shape[1], ORDER)
        for head in (self.heads, self.order, self.count):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @property
    def table(self) -> nn.Parameter:
        """The characters' embeddings, which are also the head (V, D)."""
        weight = self.model.get_input_embeddings().weight
        if not isinstance(weight, nn.Parameter):
            raise TypeError("the embedding has no trainable table.")
        return weight

    def freeze(self, layers: int) -> None:
        """Stop training the convolution and the lowest `layers` of the tower; 0 trains everything."""
        tower = self.model.vision_tower
        lower = [tower.patch_conv, tower.ln_pre, *list(tower.transformer.layers)[:layers]] if layers else []
        self.requires_grad_(True)
        for module in lower:
            module.requires_grad_(False)

    def loss(
        self, batch: Batch, *, patches: float, answer: float, pointer: float = 0.0, order: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the losses (any may be 0), and figures to log.

        Args:
            patches: weight of naming the characters under each patch and beside it.
            answer: weight of the answer's next character.
            pointer: weight of looking at the right place while answering; without an answer it has no effect.
            order: weight of knowing places, of patches in the reading order and of the decoder in its answer.
        """
        tower = self.model.vision_tower
        grids = tower.grids(batch.pixel_values, batch.image_sizes)
        features = tower.encode(batch.pixel_values, grids)
        total = features.new_zeros(())
        figures: dict[str, float] = {"pictures": float(len(batch.texts)), "patches": float(len(features))}
        if patches:
            loss, found = self._patch_loss(features, batch.characters)
            total = total + patches * loss
            figures |= found
        if order:
            written = (batch.places >= 0).nonzero().squeeze(1)
            place = self.order(self.norm(features[written]))
            loss = F.cross_entropy(place, batch.places[written].clamp(max=ORDER - 1))
            total = total + order * loss
            figures["order_loss"] = float(loss.detach())
        if answer:
            rows = self.model.multi_modal_projector([features], grids)
            loss, found = self._answer_loss(rows, batch, pointer, order)
            total = total + answer * loss
            figures |= found
        return total, figures

    def _patch_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        middle = batches.OFFSETS.index(0)
        written = (labels[:, middle] != charset.PAD).nonzero().squeeze(1)
        # Empty patches are many and easy: every third is enough.
        empty = (labels[:, middle] == charset.PAD).nonzero().squeeze(1)[::3]
        seen = self.norm(features)
        logits = self.heads(seen[written]).unflatten(1, (len(batches.OFFSETS), -1)).transpose(1, 2)
        target = labels[written]
        loss = F.cross_entropy(logits, target)
        rows = slice(middle * charset.VOCAB_SIZE, (middle + 1) * charset.VOCAB_SIZE)
        if len(empty):
            blank = linear(seen[empty], self.heads.weight[rows], self.heads.bias[rows])
            loss = loss + 0.3 * F.cross_entropy(blank, labels[empty, middle])
        right = (logits.argmax(dim=1) == target).float().mean(dim=0).tolist()
        names = ("before2", "before", "here", "after")
        return loss, {"patch_loss": float(loss.detach()), **dict(zip(names, right, strict=True))}

    def _answer_loss(
        self, rows: Tensor, batch: Batch, pointer: float, order: float
    ) -> tuple[Tensor, dict[str, float]]:
        ids, keep, targets, lengths = prompts(batch)
        hidden = self.model.embed(ids, rows)
        positions = torch.cat([torch.arange(n) for n in lengths])
        record = Record(weights=pointer > 0, hidden=order > 0)
        logits = self.model.step(hidden, Step(positions, Segments.new(lengths), (), keep), None, record)
        loss = F.cross_entropy(logits, targets)
        right = float((logits.argmax(dim=1) == targets).float().mean())
        figures = {"answer_loss": float(loss.detach()), "answer": right}
        if pointer:
            here, following = pointer_losses(record.attentions[-2], record.attentions[-1], batch)
            loss = loss + pointer * (here + following)
            figures |= {"point_here": float(here.detach()), "point_next": float(following.detach())}
        if order:
            # After the first layer, so that the next ones can look where the count says.
            written = torch.cat([torch.arange(len(text) + 1) for text in batch.texts]).clamp(max=ORDER - 1)
            counted = F.cross_entropy(self.count(record.hidden_states[1][keep]), written)
            loss = loss + order * counted
            figures["count_loss"] = float(counted.detach())
        return loss, figures


def prompts(batch: Batch) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Question and answer of every picture as packed ids.

    Returns:
        ids (L,), indices (n,) of the rows that predict an answer's id, those ids (n,), and the rows per picture.
        Pictures of one size get equally many rows (padding behind the answer), so that they run as one call.
    """
    sizes = [(int(h), int(w)) for h, w in batch.image_sizes.tolist()]
    longest: dict[tuple[int, int], int] = {}
    for size, text in zip(sizes, batch.texts, strict=True):
        longest[size] = max(longest.get(size, 0), len(text))
    ids: list[int] = []
    keep: list[int] = []
    targets: list[int] = []
    lengths = []
    for size, text in zip(sizes, batch.texts, strict=True):
        prompt = [
            charset.BOS,
            charset.INST,
            *image_ids(size),
            *charset.encode(batch.question),
            charset.END_INST,
        ]
        answer = charset.encode(text)
        first = len(ids) + len(prompt) - 1
        keep += range(first, first + len(answer) + 1)
        targets += [*answer, charset.EOS]
        padding = longest[size] - len(answer)
        lengths.append(len(prompt) + len(answer) + padding)
        ids += [*prompt, *answer, *[charset.PAD] * padding]
    return torch.tensor(ids), torch.tensor(keep), torch.tensor(targets), lengths


def pointer_losses(earlier: Sequence[Tensor], last: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """How far some heads are from looking at the right picture tokens while an answer is written.

    In the layer before the last they should look at the character just written, in the last layer at the one to come.

    Args:
        earlier, last: attention weights of the two layers, (A, T, T) per picture.

    Returns:
        Mean of −log(weight on the tokens that hold the character), for the one written and the one to come.
    """
    here: list[Tensor] = []
    following: list[Tensor] = []
    start = 0
    for number, (size, text) in enumerate(zip(batch.image_sizes.tolist(), batch.texts, strict=True)):
        rows, columns = size[0] // batches.PATCH, size[1] // batches.PATCH
        holds = _holders(batch.places[start : start + rows * columns].view(rows, columns), len(text))
        start += rows * columns
        known = holds.any(dim=1)
        first = (
            2 + holds.shape[1] + len(batch.question)
        )  # the row of [/INST], which writes the first character
        tokens = slice(2, 2 + holds.shape[1])
        heads = list(_POINTERS)
        ahead = last[number][heads, first : first + len(text), tokens]
        following.append(((ahead * holds).sum(dim=-1) + 1e-4).log()[:, known])
        behind = earlier[number][heads, first + 1 : first + 1 + len(text), tokens]
        here.append(((behind * holds).sum(dim=-1) + 1e-4).log()[:, known])
    return -torch.cat(here, dim=1).mean(), -torch.cat(following, dim=1).mean()


def _holders(places: Tensor, characters: int) -> Tensor:
    """bool (characters, picture tokens with their breaks): which tokens hold a part of which character."""
    merge = batches.UNIT // batches.PATCH
    rows, columns = places.shape[0] // merge, places.shape[1] // merge
    y, x = (places >= 0).nonzero(as_tuple=True)
    holds = torch.zeros(characters, rows * (columns + 1), dtype=torch.bool)
    holds[places[y, x], (y // merge) * (columns + 1) + x // merge] = True
    return holds


def image_ids(size: tuple[int, int]) -> Sequence[int]:
    """The ids that stand for a picture of (height, width) pixels: [IMG] per merged patch, breaks, one end."""
    rows, columns = size[0] // batches.UNIT, size[1] // batches.UNIT
    ids = ([charset.IMG] * columns + [charset.IMG_BREAK]) * rows
    ids[-1] = charset.IMG_END
    return ids
