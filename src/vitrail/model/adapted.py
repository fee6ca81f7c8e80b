"""AdapterMethods: loading, selecting, saving and merging adapters, under the names of transformers and PEFT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vitrail.arguments import checked
from vitrail.ops.in_use import changing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.adapters.config import LoraConfig

Self = TypeVar("Self", bound="AdapterMethods")


@checked
class AdapterMethods:
    """Low-rank adapters (PEFT's LoRA and DoRA) of a model: several may be loaded; the active ones are summed."""

    def load_adapter(
        self, peft_model_id: str | os.PathLike[str], adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load an adapter saved by PEFT or Vitrail and activate it.

        Args:
            peft_model_id: a folder or a hub name.
            adapter_name: the adapter's name in this model; default "default".
            kwargs: revision, token, cache_dir, local_files_only, as in from_pretrained.

        Raises:
            CheckpointError: files that are damaged or belong to another model.
            UnsupportedError: a kind of adapter without support.
        """
        from vitrail.adapters.files import load_adapter
        from vitrail.adapters.model import DEFAULT
        from vitrail.files.download_plan import ADAPTER
        from vitrail.files.hub import resolve
        from vitrail.files.hub_options import KEYWORDS, HubOptions
        from vitrail.files.keywords import refuse_unknown

        hub = HubOptions.take(kwargs)
        refuse_unknown("load_adapter", kwargs, ("adapter_name", *KEYWORDS))
        folder = resolve(peft_model_id, hub, part=ADAPTER)
        with changing(self, "an adapter cannot be loaded"):
            load_adapter(self._module, folder, adapter_name or DEFAULT)

    def add_adapter(self, adapter_config: LoraConfig, adapter_name: str | None = None) -> list[str]:
        """Add a fresh adapter, freeze everything else, and return the names of the adapted modules.

        Args:
            adapter_config: a LoraConfig of Vitrail or PEFT, or its dict.
            adapter_name: default "default".
        """
        from vitrail.adapters.config import as_lora_config
        from vitrail.adapters.model import DEFAULT, add_adapter

        with changing(self, "an adapter cannot be added"):
            return add_adapter(self._module, as_lora_config(adapter_config), adapter_name or DEFAULT)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Activate these adapters and no others. Raises InputError for a name that is not loaded."""
        from vitrail.adapters.model import set_adapter

        with changing(self, "adapters cannot be switched"):
            set_adapter(self._module, adapter_name)

    def active_adapters(self) -> list[str]:
        """Return the names of the active adapters."""
        from vitrail.adapters.model import active

        return active(self._module)

    def disable_adapters(self) -> None:
        """Compute without adapters until `enable_adapters` or `set_adapter`."""
        from vitrail.adapters.model import switch

        with changing(self, "adapters cannot be switched"):
            switch(self._module, False)

    def enable_adapters(self) -> None:
        """Compute with the active adapters."""
        from vitrail.adapters.model import switch

        with changing(self, "adapters cannot be switched"):
            switch(self._module, True)

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters from the model."""
        from vitrail.adapters.model import delete_adapter

        with changing(self, "an adapter cannot be deleted"):
            delete_adapter(self._module, adapter_names)

    def get_adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Return the tensors by PEFT's keys, of the adapter of that name or the only one."""
        from vitrail.adapters.files import adapter_state, which

        return adapter_state(self._module, which(self._module, adapter_name))

    def save_adapter(self, save_directory: str | os.PathLike[str], adapter_name: str | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors, for Vitrail and PEFT."""
        from vitrail.adapters.files import save_adapter

        save_adapter(self._module, save_directory, adapter_name)

    def merge_and_unload(self: Self, adapter_names: Sequence[str] | None = None) -> Self:
        """Merge adapters (default: the active ones) into the weights, remove all, and return the model.

        Adapted quantised layers become plain ones: quantising again would round the adapter away.
        """
        from vitrail.adapters.model import merge
        from vitrail.model.layers import Linear

        with changing(self, "adapters cannot be merged"):
            merge(self._module, adapter_names, Linear)
        return self

    @property
    def _module(self) -> nn.Module:
        return self  # type: ignore[return-value]  # every user of this class is a module
