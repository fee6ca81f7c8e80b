"""MistralModel: embeddings, decoder blocks, final norm, on packed rows; padded.py packs (B, T).

Letters: L packed rows · D width · A query heads · G key/value heads · K head width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.configs import MistralConfig
from vitrail.errors import UnsupportedError
from vitrail.kv.cache import KVCache
from vitrail.model.fused import FusedBlocks
from vitrail.model.layers import Embedding, GatedMLP, Linear, RMSNorm, project
from vitrail.model.outputs import BaseModelOutputWithPast
from vitrail.model.padded import PaddedModel, refuse_unknown, take_cache, take_repeated
from vitrail.model.record import Record
from vitrail.model.rotation import Rotation, Rotations
from vitrail.ops import threads
from vitrail.ops.attention import AttentionPlan
from vitrail.ops.batch import ForwardBatch
from vitrail.ops.inputs import as_tensors, check_flags
from vitrail.ops.rows import rotate_pair


class MistralAttention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions and a paged cache."""

    def __init__(self, config: MistralConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.k_proj = Linear(config.hidden_size, groups * self.head_dim, bias=False)
        self.v_proj = Linear(config.hidden_size, groups * self.head_dim, bias=False)
        self.o_proj = Linear(heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, turn: Rotation, plan: AttentionPlan, record: Record) -> Tensor:
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.reshape(len(y), -1, self.head_dim) for y in projected)
        q, k = rotate_pair(q, k, turn.cos, turn.sin)
        if turn.temperature is not None:
            q = q * turn.temperature.to(q.dtype)[:, None, None]
        scale = self.head_dim**-0.5
        mixed = record.attend(plan, q, k, v, scale=scale, layer=self.index, window=self.window)
        out: Tensor = self.o_proj(mixed.flatten(1))
        return out


class MistralDecoderLayer(nn.Module):
    """One block of the decoder: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: MistralConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MistralAttention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor, turn: Rotation, plan: AttentionPlan, record: Record) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, plan, record)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


_FORWARDS: dict[type[nn.Module], Any] = {
    module: module.forward for module in (MistralDecoderLayer, MistralAttention)
}


class MistralModel(PaddedModel):
    """Mistral decoder without its head; also Ministral 3's (YaRN, query temperature)."""

    config_class: ClassVar[type[MistralConfig]] = MistralConfig
    base_model_prefix: ClassVar[str] = "model"
    config: MistralConfig

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MistralDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._rotations = Rotations()
        self._fused = FusedBlocks(_FORWARDS)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.embed_tokens = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None" = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> "BaseModelOutputWithPast | tuple[Any, ...]":
        """Return hidden states of every position, as transformers' method; arguments as in vlm.py."""
        past_key_values = take_cache(kwargs, past_key_values)
        take_repeated(kwargs, position_ids)
        refuse_unknown("MistralModel.forward", kwargs)
        check_flags(return_dict=return_dict)
        input_ids, inputs_embeds = as_tensors(self.device, input_ids=input_ids, inputs_embeds=inputs_embeds)
        fields = self._last_hidden(
            self.run,
            self._embeddings(input_ids, inputs_embeds),
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )
        output = BaseModelOutputWithPast(**fields)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def first_values(self, rows: Tensor) -> Tensor:
        """Return the first block's values (L, G, K) of embeddings (L, D); they depend on no position."""
        block: Any = self.layers[0]
        rows = rows.to(block.input_layernorm.weight.device)
        values: Tensor = block.self_attn.v_proj(block.input_layernorm(rows))
        return values.view(len(values), -1, block.self_attn.head_dim)

    def run(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, record: Record) -> Tensor:
        """Run embeddings (L, D) through all blocks and the final norm → (L, D)."""
        if batch.adapter_indices is not None:
            raise UnsupportedError(
                "an adapter per row is not supported; leave out adapter_indices and choose adapters for all rows with "
                "set_adapter()."
            )
        widest = max(self.config.intermediate_size, self.config.num_attention_heads * self.config.head_dim)
        again = self.is_gradient_checkpointing
        with threads.fitting(len(hidden), widest * self.config.hidden_size, recomputed=again):
            return self._run(hidden, batch, cache, record)

    def _run(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, record: Record) -> Tensor:
        turn = self._rotations.at(self.config, batch.positions, hidden.dtype)
        fused = None if record.wanted else self._fused.run(self.layers, hidden, turn, batch, cache)
        if fused is None:
            plan = AttentionPlan(batch.attention, cache)
            for layer in self.layers:
                hidden = record.see(hidden)
                hidden = self.run_layer(layer, hidden, turn, plan, record)
        else:
            hidden = fused
        return record.see(self.norm(hidden))
