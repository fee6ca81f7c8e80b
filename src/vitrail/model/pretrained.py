"""PreTrainedModel: loading, saving, resizing, initialisation and sizes of every model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.arguments import checked
from vitrail.configs import PretrainedConfig
from vitrail.errors import InputError, UnsupportedError
from vitrail.model.adapted import AdapterMethods
from vitrail.model.module_methods import ModuleMethods
from vitrail.model.room import refuse_if_too_large
from vitrail.model.training import TrainerMethods, checkpoint_options
from vitrail.ops.in_use import changing

if TYPE_CHECKING:
    from vitrail.configs.generation import GenerationConfig

Self = TypeVar("Self", bound="PreTrainedModel")


class PreTrainedModel(AdapterMethods, ModuleMethods, TrainerMethods, nn.Module):
    """Base of all models. Method names and arguments follow transformers 4.57."""

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    _tied_weights_keys: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise InputError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, got {type(config).__name__}."
            )
        config.check()  # values may have been set since its creation
        refuse_if_too_large(config)
        self.config = config
        self.name_or_path = config.name_or_path
        self.is_gradient_checkpointing = False
        self._checkpoint_options: dict[str, Any] = {}
        self.warnings_issued: dict[str, bool] = {}  # trainers record their issued warnings here
        self._generation_config: GenerationConfig | None = None

    # --- initialisation -----------------------------------------------------------------------------------

    def post_init(self) -> None:
        """Draw the weights created by this model, and tie the head if the configuration ties it."""
        std = float(getattr(self.config.get_text_config(), "initializer_range", 0.02))
        for module in self.modules():
            if getattr(module, "_vitrail_initialized", False):
                continue
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                bias = getattr(module, "bias", None)
                # Drawing on the meta device would import torch's whole compiler (a second).
                if not module.weight.is_meta:
                    nn.init.normal_(module.weight, mean=0.0, std=std)
                if bias is not None and not bias.is_meta:
                    nn.init.zeros_(bias)
            module._vitrail_initialized = True  # type: ignore[assignment]
        self.tie_weights()

    def tie_weights(self) -> None:
        """Share one tensor between head and embeddings if the text configuration ties them."""
        head = self.get_output_embeddings()
        if head is None or not self.config.get_text_config().tie_word_embeddings:
            return
        weight = self.get_input_embeddings().weight
        if head.weight is not weight:  # a packed table and its head are tied when they are loaded
            head.weight = weight

    @classmethod
    def _from_config(cls: type[Self], config: Any, **kwargs: Any) -> Self:
        """Return a model with random weights of `dtype` (or `torch_dtype`), default the configuration's."""
        from vitrail.configs.attention import check_attention
        from vitrail.model.loading import named_dtype

        dtype = named_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None), config)
        check_attention(kwargs.pop("attn_implementation", None))
        if kwargs:
            raise UnsupportedError(f"{cls.__name__}._from_config does not know {', '.join(kwargs)}.")
        model = cls(config)
        return model if dtype is None else model.to(dtype)

    # --- files --------------------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: "str | os.PathLike[str]",
        *model_args: Any,
        config: Any = None,
        cache_dir: "str | Path | None" = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: "str | bool | None" = None,
        revision: str = "main",
        use_safetensors: bool | None = None,
        weights_only: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint from a folder or a hub name, tensor by tensor, in eval() mode.

        Args:
            pretrained_model_name_or_path: a folder or a hub name.
            config: a configuration, file or folder in place of the checkpoint's.
            kwargs: `dtype` (or `torch_dtype`): a torch.dtype, its name, or "auto" (the configuration's, else the
                files'); default float32, as in transformers. `device_map`: "auto", a device, or a dict of module
                prefixes. `quantization_config`: a BitsAndBytesConfig or a QuantizeConfig. `attn_implementation`: "sdpa"
                or "eager", the same here. `format`: "hf" (default) or "mistral" for a folder with both.
                `vision=False`: leave out vision tower and projector; images raise InputError. Keys of the
                configuration (`text_config={…}` too) override the file's.

        Raises:
            CheckpointError: files that are missing, damaged or do not fit; one report lists every tensor.
            OutOfMemory: weights larger than the free memory, before any allocation; VITRAIL_MEMORY_CHECK=off in the
                environment turns the check off.
            UnsupportedError: an argument without support.
        """
        from vitrail.files.hub_options import HubOptions
        from vitrail.model.loading import load_pretrained

        refused = {
            "ignore_mismatched_sizes": ignore_mismatched_sizes,
            "use_safetensors=False": use_safetensors is False,
            "weights_only=False": not weights_only,
            "positional model arguments": bool(model_args),
        }
        for name, asked in refused.items():
            if asked:
                raise UnsupportedError(f"from_pretrained does not support {name}.")
        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return load_pretrained(cls, pretrained_model_name_or_path, config=config, hub=hub, options=kwargs)

    @checked
    def save_pretrained(
        self,
        save_directory: "str | Path",
        is_main_process: bool = True,
        state_dict: "dict[str, Tensor] | None" = None,
        save_function: "Callable[..., Any] | None" = None,
        push_to_hub: bool = False,
        max_shard_size: "int | str" = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        token: "str | bool | None" = None,
        save_peft_format: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write config.json, generation_config.json and safetensors that Vitrail and transformers load.

        Args:
            save_directory: the folder to write.
            is_main_process: False writes nothing.
            state_dict: tensors to write in place of the model's own.
            save_function: unused, as in transformers: it writes pickles, and these files are safetensors.
            max_shard_size: bytes of the largest file, or such as "5GB".

        Raises:
            UnsupportedError: an argument without support.
        """
        from vitrail.model.loading import save_pretrained

        if save_function is not None and not callable(save_function):
            raise InputError(f"save_function must be a function, got {type(save_function).__name__}.")
        refused = {
            "push_to_hub": push_to_hub,
            "safe_serialization=False": not safe_serialization,
            "variant": variant is not None,
            "save_original_format=False": not kwargs.pop(
                "save_original_format", True
            ),  # transformers 5's name for "as published"
            "distributed_checkpoint": bool(kwargs.pop("distributed_checkpoint", False)),
            **dict.fromkeys(kwargs, True),
        }
        for name, asked in refused.items():
            if asked:
                raise UnsupportedError(f"save_pretrained does not support {name}.")
        if is_main_process:
            save_pretrained(self, Path(save_directory), max_shard_size=max_shard_size, state_dict=state_dict)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedError: uploads are not supported."""
        raise UnsupportedError(
            "push_to_hub is not supported; use save_pretrained and upload the folder with huggingface_hub."
        )

    # --- embeddings ---------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of input embeddings."""
        raise NotImplementedError

    @checked
    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of input embeddings."""
        raise UnsupportedError(f"{type(self).__name__} has no input embeddings that could be replaced.")

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, or None."""
        return None

    @checked
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Change the number of rows of embeddings and head; old rows keep their values.

        New rows are the mean of the old ones, or normal draws for mean_resizing=False. (transformers draws around
        the mean with the old rows' covariance.)
        """
        from vitrail.model.resize import resize_token_embeddings

        with changing(self, "embeddings cannot be resized"):
            return resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of, mean_resizing)

    def prune_heads(self, heads_to_prune: Any) -> None:
        """Raise UnsupportedError: pruning is not supported."""
        raise UnsupportedError(
            "prune_heads is not supported; grouped-query heads cannot be pruned one by one."
        )

    @property
    def vision(self) -> bool:
        """False for a vision-language model without its tower."""
        return True

    def remove_vision(self) -> None:
        """Remove tower and projector (`vision=False`). Raises UnsupportedError for a model without them."""
        raise UnsupportedError(f"{type(self).__name__} has no separate vision tower; leave vision=False out.")

    # --- numbers and places -------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the first parameter, and of inputs."""
        for parameter in self.parameters():
            return parameter.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating-point parameter."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.float32

    @checked
    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters; a tied head counts once."""
        left_out = set()
        if exclude_embeddings:
            left_out = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        counted = (
            p for p in self.parameters() if id(p) not in left_out and (p.requires_grad or not only_trainable)
        )
        tables = (self.get_input_embeddings(),) if exclude_embeddings and self.can_generate() else ()
        packed = sum(int(getattr(m, "packed_parameters", 0)) for m in self.modules() if m not in tables)
        return sum(p.numel() for p in counted) + (0 if only_trainable else packed)

    # --- training -----------------------------------------------------------------------------------------

    @checked
    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: "dict[str, Any] | None" = None
    ) -> None:
        """Recompute blocks in the backward pass instead of storing their activations.

        gradient_checkpointing_kwargs: use_reentrant=False, preserve_rng_state and context_fn of torch.utils.checkpoint.
        """
        self._set_checkpointing(True, checkpoint_options(gradient_checkpointing_kwargs))

    def gradient_checkpointing_disable(self) -> None:
        """Store activations again."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, value: bool, options: "dict[str, Any] | None" = None) -> None:
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.is_gradient_checkpointing = value
                module._checkpoint_options = options or {}

    def run_layer(self, layer: nn.Module, *args: Any) -> Tensor:
        """Call a block, under gradient checkpointing if enabled."""
        if self.is_gradient_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(layer, *args, use_reentrant=False, **self._checkpoint_options)
            return out
        plain: Tensor = layer(*args)
        return plain

    # --- generation ---------------------------------------------------------------------------------------

    @property
    def generation_config(self) -> "GenerationConfig":
        """Defaults of generate(): generation_config.json's values, else the configuration's."""
        if self._generation_config is None:
            from vitrail.configs.generation import GenerationConfig

            self._generation_config = GenerationConfig.from_model_config(self.config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        """Set a GenerationConfig, transformers' own or a dict of options; None: the configuration's values."""
        from vitrail.configs.generation import as_generation_config

        self._generation_config = None if value is None else as_generation_config(value)

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the class has a head, and so generate()."""
        return hasattr(cls, "generate")
