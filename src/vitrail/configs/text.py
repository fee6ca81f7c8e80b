"""MistralConfig and Ministral3Config: the geometry of the language model."""

from typing import Any, ClassVar

from vitrail.arguments import short
from vitrail.configs.base import PretrainedConfig, was_read
from vitrail.configs.fields import check_field
from vitrail.configs.rope import check_yarn, take_rope
from vitrail.errors import ConfigError


class MistralConfig(PretrainedConfig):
    """Geometry of a Mistral decoder; argument names, order and defaults are transformers 4.57's.

    `head_dim` None means hidden_size / num_attention_heads. `sliding_window` counts positions; None means full
    attention (null in every Pixtral-family checkpoint). `norm_eps`, the spelling of some conversions, is read as
    `rms_norm_eps`.
    """

    model_type: ClassVar[str] = "mistral"
    rope_types: ClassVar[tuple[str, ...]] = ("yarn",)
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    max_position_embeddings: int
    initializer_range: float
    rms_norm_eps: float
    use_cache: bool
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    sliding_window: int | None
    attention_dropout: float

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 14336,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = 8,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 4096 * 32,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: "int | list[int] | None" = 2,
        tie_word_embeddings: bool = False,
        rope_theta: float = 10000.0,
        sliding_window: int | None = 4096,
        attention_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if "norm_eps" in kwargs:
            rms_norm_eps = kwargs.pop("norm_eps")
        rope_theta, scaling = take_rope(kwargs, rope_theta, read=was_read())
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.rope_theta = rope_theta
        self.rope_scaling = scaling
        self.sliding_window = sliding_window
        self.attention_dropout = attention_dropout
        self._check_sizes()
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.check()

    def check(self) -> None:
        super().check()
        self._check_sizes()
        check_field(type(self).__name__, "head_dim", self.head_dim, int, minimum=2)
        if self.head_dim % 2:
            raise ConfigError(f"{type(self).__name__}: head_dim must be even, got {self.head_dim}.")

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings in transformers 5's form."""
        scaling = self.rope_scaling or {"rope_type": "default"}
        return {"rope_theta": self.rope_theta, **scaling}

    def _check_sizes(self) -> None:
        owner = type(self).__name__
        sizes = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "max_position_embeddings"
        )
        for name in sizes.split():
            check_field(owner, name, getattr(self, name), int, minimum=1)
        for name in ("initializer_range", "rms_norm_eps", "attention_dropout"):
            check_field(owner, name, getattr(self, name), (int, float), minimum=0)
        check_field(owner, "sliding_window", self.sliding_window, (int, type(None)), minimum=1)
        check_field(owner, "use_cache", self.use_cache, bool)
        check_field(owner, "hidden_act", self.hidden_act, str)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{owner}: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}."
            )
        if self.attention_dropout:
            raise ConfigError(
                f"{owner}: attention_dropout {self.attention_dropout} is not supported; use 0.0."
            )
        if self.rope_scaling is not None and self.rope_scaling["rope_type"] not in self.rope_types:
            raise ConfigError(
                f"{owner}: rope_type {short(self.rope_scaling['rope_type'])} is not supported; "
                f"the family uses default and {', '.join(self.rope_types)}."
            )
        if self.rope_scaling is not None:
            check_yarn(self.rope_theta, self.rope_scaling)


class Ministral3Config(MistralConfig):
    """Geometry of a Ministral 3 / Devstral Small 2 decoder: YaRN and a query temperature that grows with position.

    The defaults are Ministral 3 8B's. `rope_parameters` holds rope_theta, rope_type "yarn", factor,
    original_max_position_embeddings, beta_fast, beta_slow, mscale, mscale_all_dim and llama_4_scaling_beta.
    transformers has this type from version 5 on.
    """

    model_type: ClassVar[str] = "ministral3"

    def __init__(
        self,
        vocab_size: int = 131072,
        hidden_size: int = 4096,
        intermediate_size: int = 14336,
        num_hidden_layers: int = 34,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = 8,
        head_dim: int | None = 128,
        hidden_act: str = "silu",
        max_position_embeddings: int = 262144,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        use_cache: bool = True,
        pad_token_id: int | None = 11,
        bos_token_id: int | None = 1,
        eos_token_id: "int | list[int] | None" = 2,
        tie_word_embeddings: bool = False,
        rope_parameters: dict[str, Any] | None = None,
        sliding_window: int | None = None,
        attention_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if rope_parameters is None and "rope_scaling" not in kwargs:
            rope_parameters = {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        if rope_parameters is not None:
            kwargs["rope_parameters"] = rope_parameters
        super().__init__(
            vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
            head_dim, hidden_act, max_position_embeddings, initializer_range, rms_norm_eps, use_cache, pad_token_id,
            bos_token_id, eos_token_id, tie_word_embeddings, kwargs.pop("rope_theta", 1e6), sliding_window,
            attention_dropout, **kwargs,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        written = super().to_dict()
        written.pop("rope_scaling", None)
        written.pop("rope_theta", None)
        written["rope_parameters"] = dict(self.rope_parameters)
        return written
