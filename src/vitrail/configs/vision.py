"""PixtralVisionConfig: the geometry of the vision tower. No projector, no language model."""

from typing import Any, ClassVar

from vitrail.arguments import short
from vitrail.configs.base import PretrainedConfig, was_read
from vitrail.configs.fields import check_field
from vitrail.configs.rope import take_rope
from vitrail.errors import ConfigError


class PixtralVisionConfig(PretrainedConfig):
    """Geometry of the Pixtral vision tower; the defaults are Pixtral 12B's.

    Units: `image_size` and `patch_size` in pixels; `head_dim` defaults to hidden_size / num_attention_heads.
    The activation defaults to SiLU, that of every published tower (transformers' class has "gelu").
    Source: Pixtral 12B paper (arXiv 2410.07073) and the published config.json files.
    """

    model_type: ClassVar[str] = "pixtral"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    attention_dropout: float
    rope_theta: float
    initializer_range: float
    head_dim: int

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 1024,
        patch_size: int = 16,
        hidden_act: str = "silu",
        attention_dropout: float = 0.0,
        rope_theta: float = 10000.0,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if isinstance(patch_size, dict):  # {"height": 16, "width": 16}
            patch_size = _square(patch_size)
        rope_theta, scaling = take_rope(kwargs, rope_theta, read=was_read())
        if scaling is not None:
            raise ConfigError(
                f"PixtralVisionConfig: rope_parameters {short(scaling)}; the tower's rotary embedding has no scaling."
            )
        head_dim = kwargs.pop("head_dim", None)
        kwargs.pop("exact_hidden_act", None)  # of use to the reader of files only
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.attention_dropout = attention_dropout
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self._check_sizes()
        self.head_dim = head_dim if head_dim is not None else hidden_size // num_attention_heads
        self.check()

    def check(self) -> None:
        super().check()
        self._check_sizes()
        check_field(type(self).__name__, "head_dim", self.head_dim, int, minimum=4)
        if self.head_dim % 4:
            raise ConfigError(
                f"PixtralVisionConfig: head_dim must be a multiple of 4 (half of its pairs turn with the row, half "
                f"with the column), got {self.head_dim}."
            )

    def _check_sizes(self) -> None:
        sizes = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size"
        for name in sizes.split():
            check_field(type(self).__name__, name, getattr(self, name), int, minimum=1)
        for name in ("attention_dropout", "rope_theta", "initializer_range"):
            check_field(type(self).__name__, name, getattr(self, name), (int, float), minimum=0)
        check_field(type(self).__name__, "hidden_act", self.hidden_act, str)
        if self.attention_dropout:
            raise ConfigError(
                f"PixtralVisionConfig: attention_dropout {self.attention_dropout} is not supported; use 0.0."
            )

    def to_dict(self) -> dict[str, Any]:
        written = super().to_dict()
        if self.hidden_act == "gelu":
            # The reader replaces "gelu" of published files by SiLU; the mark keeps an intended one.
            written["exact_hidden_act"] = True
        return written


def _square(sides: dict[str, Any]) -> Any:
    if sides.get("height") != sides.get("width") or "height" not in sides:
        raise ConfigError(f"PixtralVisionConfig: patch_size must be square, got {short(sides)}.")
    return sides["height"]
