"""MistralModel: embeddings, decoder blocks, final norm, on packed rows. No pictures, no logits, no (B, T).

Letters: L packed rows · D width · A query heads · G key/value heads · K head width.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from vitrail.configs import MistralConfig
from vitrail.generate.cache import KVCache
from vitrail.model.fused import FusedBlocks
from vitrail.model.layers import Embedding, GatedMLP, Linear, RMSNorm, project
from vitrail.model.pretrained import PreTrainedModel
from vitrail.model.record import Record
from vitrail.ops import rope
from vitrail.ops.attention import attention, attention_weights
from vitrail.ops.native_rows import rotate_pair
from vitrail.ops.step import Step


class Rotation(NamedTuple):
    """What every layer of one step shares: cos, sin (L, K) and the query's temperature (L,) or None."""

    cos: Tensor
    sin: Tensor
    temperature: Tensor | None


class MistralAttention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions and a block cache."""

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

    def forward(self, x: Tensor, turn: Rotation, step: Step, cache: KVCache | None, record: Record) -> Tensor:
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.reshape(len(y), -1, self.head_dim) for y in projected)
        q, k = rotate_pair(q, k, turn.cos, turn.sin)
        if turn.temperature is not None:
            q = q * turn.temperature.to(q.dtype)[:, None, None]
        kv = None if cache is None else cache.layer(self.index, step)
        scale = self.head_dim**-0.5
        mixed = attention(q, k, v, step.segments, scale=scale, kv=kv, window=self.window)
        if record.weights:
            record.attentions.append(
                attention_weights(q, k, step.segments, scale=scale, kv=kv, window=self.window)
            )
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

    def forward(self, x: Tensor, turn: Rotation, step: Step, cache: KVCache | None, record: Record) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, step, cache, record)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class MistralModel(PreTrainedModel):
    """The Mistral decoder without its head; also Ministral 3's (YaRN, query temperature)."""

    config_class: ClassVar[type[MistralConfig]] = MistralConfig
    base_model_prefix: ClassVar[str] = "model"
    config: MistralConfig

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MistralDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._fused = FusedBlocks(MistralDecoderLayer, MistralAttention)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.embed_tokens = value  # type: ignore[assignment]

    def run(self, hidden: Tensor, step: Step, cache: KVCache | None, record: Record) -> Tensor:
        """(L, D) embeddings → (L, D) after the last block and the final norm."""
        turn = self._rotation(step.positions, hidden)
        fused = None if record.wanted else self._fused.run(self.layers, hidden, turn, step, cache)
        if fused is None:
            for layer in self.layers:
                record.see(hidden)
                hidden = self.run_layer(layer, hidden, turn, step, cache, record)
        else:
            hidden = fused
        normed: Tensor = self.norm(hidden)
        record.see(normed)
        return normed

    def _rotation(self, positions: Tensor, like: Tensor) -> Rotation:
        scaling = self.config.rope_scaling
        width, theta = self.config.head_dim, self.config.rope_theta
        if scaling is None:
            inv_freq, factor = rope.frequencies(width, theta, like.device), 1.0
        else:
            inv_freq = rope.yarn_frequencies(
                width,
                theta,
                factor=float(scaling["factor"]),
                original_positions=int(
                    scaling.get("original_max_position_embeddings") or self.config.max_position_embeddings
                ),
                beta_fast=float(scaling.get("beta_fast") or 32.0),
                beta_slow=float(scaling.get("beta_slow") or 1.0),
                truncate=bool(scaling.get("truncate", True)),
                device=like.device,
            )
            given = scaling.get("attention_factor")
            factor = (
                rope.yarn_attention_factor(
                    float(scaling["factor"]), scaling.get("mscale"), scaling.get("mscale_all_dim")
                )
                if given is None
                else float(given)
            )
        cos, sin = rope.cos_sin(rope.angles(positions, inv_freq), like.dtype, factor)
        beta = None if scaling is None else scaling.get("llama_4_scaling_beta")
        temperature = None
        if scaling is not None and beta is not None:
            original = int(scaling["original_max_position_embeddings"])
            temperature = rope.query_temperature(positions, float(beta), original)
        return Rotation(cos, sin, temperature)
