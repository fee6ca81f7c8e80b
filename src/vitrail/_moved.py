"""Moved modules of version 0.1.0: an old name imports the new module, with one warning that names it.

The package itself imports no old name. The table is removed in the next minor version.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old module → new module, both below `vitrail`; "" for a removed folder, imported as an empty package.
MOVED = {
    "inputs": "",
    "files.listing": "files.formatting",
    "files.size": "files.formatting",
    "files.wanted": "files.download_plan",
    "bench.work": "model.cost",
    "cli.estimate": "model.estimate",
    "cli.model_info": "describe",
    "cli.pictures": "cli.images",
    "cli.model_parts": "model.architecture",
    "generate.cache": "kv.cache",
    "generate.context": "generate.runner",
    "inputs.arrays": "images.arrays",
    "inputs.batch": "images.batch_feature",
    "inputs.budget": "prompts.template_budget",
    "inputs.built_prompts": "prompts.builtin.encode_chat",
    "inputs.call_list": "responses.tool_call_json",
    "inputs.call_reader": "responses.tool_calls",
    "inputs.chat": "prompts.render",
    "inputs.control_names": "responses.control_names",
    "inputs.conversation_file": "prompts.conversation_file",
    "inputs.fetch": "images.fetch",
    "inputs.formats": "prompts.builtin",
    "inputs.formats.building": "prompts.builtin.build",
    "inputs.formats.built": "prompts.builtin.built_prompt",
    "inputs.formats.card": "prompts.builtin.card",
    "inputs.formats.description": "prompts.builtin.description",
    "inputs.formats.encoding": "prompts.builtin.encode",
    "inputs.formats.json_encoder": "tokenizer.json_encoder",
    "inputs.formats.json_text": "prompts.builtin.json_text",
    "inputs.formats.merging": "prompts.builtin.merge",
    "inputs.formats.mistral_encoder": "tokenizer.mistral_encoder",
    "inputs.formats.pieces": "prompts.builtin.pieces",
    "inputs.formats.schema": "prompts.builtin.schema",
    "inputs.formats.sizes": "prompts.builtin.sizes",
    "inputs.formats.tools": "prompts.builtin.tools",
    "inputs.formats.trusted": "prompts.builtin.trusted",
    "inputs.formats.turns": "prompts.builtin.turns",
    "inputs.formats.validation": "prompts.builtin.validation",
    "inputs.formats.versions": "prompts.builtin.versions",
    "inputs.formats.writing": "prompts.builtin.writing",
    "inputs.grid": "images.grid",
    "inputs.image_processor": "images.processor",
    "inputs.image_processor_base": "images.processor_base",
    "inputs.image_processor_fast": "images.processor_fast",
    "inputs.image_settings": "images.settings",
    "inputs.images": "images.load",
    "inputs.laid_out": "processor.prepared",
    "inputs.messages": "prompts.messages",
    "inputs.mistral_bridge": "tokenizer.mistral_bridge",
    "inputs.mistral_rows": "tokenizer.mistral_rows",
    "inputs.mistral_tokenizer": "tokenizer.mistral",
    "inputs.mistral_vocabulary": "tokenizer.mistral_vocabulary",
    "inputs.padding": "tokenizer.padding",
    "inputs.pdf": "images.pdf",
    "inputs.pdf_worker": "images.pdf_worker",
    "inputs.processor": "processor.processor",
    "inputs.processor_files": "processor.load",
    "inputs.prompt": "prompts.control_token_mask",
    "inputs.prompt_view": "processor.prompt_view",
    "inputs.resize": "images.resize",
    "inputs.response": "responses.parser",
    "inputs.response_pieces": "responses.events",
    "inputs.response_stream": "responses.streamer",
    "inputs.special_tokens": "tokenizer.special_tokens",
    "inputs.template": "prompts.template",
    "inputs.template_view": "prompts.template_view",
    "inputs.tokenizer": "tokenizer.fast",
    "inputs.tokenizer_backend": "tokenizer.backend",
    "inputs.tokenizer_choice": "tokenizer.load",
    "inputs.tokenizer_files": "tokenizer.config_file",
    "inputs.typed_controls": "tokenizer.escaping",
    "inputs.vocabulary": "tokenizer.vocabulary",
    "ops.encode": "ops.reference.encode",
    "ops.native": "ops.cpu.library",
    "ops.native_attention": "ops.cpu.attention",
    "ops.native_decoder": "ops.cpu.decoder",
    "ops.native_dense": "ops.cpu.dense",
    "ops.native_encode": "ops.cpu.encode",
    "ops.native_kv": "ops.cpu.kv",
    "ops.native_quant": "ops.cpu.quant",
    "ops.native_rows": "ops.cpu.rows",
    "ops.panels": "ops.packing_layout",
    "ops.rounded": "ops.reference.quant_matmul",
    "ops.sdpa": "ops.reference.attention",
    "ops.step": "ops.batch",
    "quant.bitsandbytes": "quant.formats.bitsandbytes",
    "quant.own": "quant.formats.vitrail",
    "quant.own_config": "quant.quantize_config",
    "quant.own_layout": "quant.formats.vitrail",
    "reader.crew": "reader.worker_pool",
    "reader.draw": "reader.render_text",
    "reader.sheet": "reader.contact_sheet",
    "reader.start": "reader.init_weights",
    "train.peers": "train.distributed",
    "train.rates": "train.lr_schedule",
    "train.state": "train.checkpoint",
    "weights.beside": "weights.sidecar_files",
    "weights.native": "weights.mistral_checkpoint",
}


class _Finder:  # no base class: importlib.abc takes a third of the time of `import vitrail`
    """Loads the new module under the old name, so that both names are one module with one set of classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "vitrail" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not MOVED[name])  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, for a default empty module."""

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__.partition(".")[2]]
        if not new:
            return
        warnings.warn(
            f"{module.__name__} has moved to vitrail.{new}; import it from there.",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = import_module(f"vitrail.{new}")


def install() -> None:
    """Register the finder of old names once, ahead of the path search, which would look for a moved package's files."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
