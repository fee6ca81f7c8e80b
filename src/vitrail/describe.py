"""ModelInfo: contents and costs of a checkpoint, from the headers of its files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vitrail.auto import meta_model
from vitrail.configs import MistralConfig, PretrainedConfig, read_config
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.layout import complete_formats, weight_files
from vitrail.files.safetensors import TensorSpec
from vitrail.images.grid import Dialect, image_grid
from vitrail.model.architecture import Part, architecture
from vitrail.model.cost import kv_bytes, prefill_cost, vision_cost
from vitrail.processor.load import image_settings
from vitrail.quant.config import Quantization, read_quantization
from vitrail.quant.formats import FORMATS
from vitrail.quant.policy import to_pack
from vitrail.quant.quantize_config import QuantizeConfig
from vitrail.tokenizer.load import check_tokenizer, choose_tokenizer
from vitrail.weights.checkpoint import open_checkpoint
from vitrail.weights.devices import placement
from vitrail.weights.free_memory import free_memory
from vitrail.weights.memory import Form, Headers, kept_bytes, mapped_bytes, peak_bytes
from vitrail.weights.names import EMBEDDING, HEAD, canonical
from vitrail.weights.plan import Plan, make_plan

# height × width of typical images: an icon, a thumbnail, a small photograph, a screen, a scanned page.
SIZES = ((224, 224), (512, 512), (768, 1024), (1080, 1920), (3508, 2480))
IMAGE, QUESTION = (768, 1024), 32  # the image and the ids of text of a typical question
HALF = torch.bfloat16  # float16 has the same size
FORMS: Mapping[str, Form] = {
    "float32": Form(torch.float32),
    "bfloat16": Form(HALF),
    **{
        name: Form(HALF, config)
        for format in reversed(FORMATS.values())
        for name, config in format.configs().items()
    },
}
_TEXT = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
    "max_position_embeddings rope_theta rope_scaling sliding_window"
)
_VISION = "hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim image_size patch_size rope_theta"
_PARTS = {"model.vision_tower.": "vision_tower", "model.multi_modal_projector.": "projector"}


@dataclass
class ModelInfo:
    """All that `vitrail info` prints but speeds; sizes in bytes. None or {} for absent parts."""

    model: str
    folder: str
    architecture: Part
    model_type: str
    format: str  # "" without files
    formats: list[str]
    weights: dict[str, Any]  # files, bytes, dtypes (name → bytes), quantized, bits_per_weight, here
    geometry: dict[str, dict[str, Any]]
    parameters: dict[str, int]
    tied: bool
    memory: dict[str, dict[str, int]]  # precision → weights, mapped (of these), while_loading, read_per_token
    free: dict[str, Any]  # device, bytes
    cache: dict[str, int]  # precision → bytes per 1,000 positions
    positions: int
    question: dict[str, int]  # a text of QUESTION ids, with an image if the model takes images: ids, flop
    images: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the record of `--json`."""
        return {**vars(self), "architecture": self.architecture.as_json()}


def describe(folder: str | os.PathLike[str], name: str, format: str | None = None) -> ModelInfo:
    """Describe a checkpoint from its settings and headers.

    Args:
        folder: the checkpoint's folder; its weights may be missing.
        name: the name in the result.
        format: "hf" or "mistral"; None: as when loading.

    Raises:
        VitrailError: anything that would keep the checkpoint from loading.
    """
    folder = CheckpointFolder.at(folder, format=format)
    chosen = folder.layout
    config = read_config(folder)
    stored = read_quantization(getattr(config, "quantization_config", None))
    check_tokenizer(folder, config)
    names = _names(folder)
    here = bool(weight_files(folder.files, chosen))
    network, headers, plan = _open(folder, config) if here else _describe(config)
    parameters = _parameters(network)
    weights = _weights(folder, names, chosen, headers, plan, stored, here)
    stored_bytes = sum(weights["dtypes"].values())
    weights["bits_per_weight"] = round(stored_bytes * 8 / parameters["total"], 4) if here else None
    return ModelInfo(
        model=name,
        folder=str(folder),
        format=chosen,
        formats=complete_formats(names) or [chosen],
        weights=weights,
        tokenizer=_tokenizer(folder),
        **_model(config, network, headers, plan, stored),
        **_image_costs(network, image_settings(folder) if config.has_vision else {}),
    )


def describe_config(config: PretrainedConfig, name: str) -> ModelInfo:
    """Describe a model of this configuration without files; images are counted as in mistral-common."""
    network, headers, plan = _describe(config)
    settings: dict[str, Any] = {}
    if config.has_vision:
        vision: Any = config.vision_config
        merge = getattr(config, "spatial_merge_size", 1)
        longest = (vision.image_size, vision.image_size)
        settings = {
            "patch_size": vision.patch_size,
            "merge": merge,
            "longest_edge": longest,
            "dialect": "mistral",
        }
    weights = {
        "files": [],
        "bytes": 0,
        "dtypes": {},
        "quantized": None,
        "here": False,
        "bits_per_weight": None,
    }
    return ModelInfo(
        model=name,
        folder="",
        format="",
        formats=[],
        weights=weights,
        **_model(config, network, headers, plan, None),
        **_image_costs(network, settings),
    )


def _model(
    config: PretrainedConfig, network: Any, headers: Headers, plan: Plan, stored: Quantization | None
) -> dict[str, Any]:
    """Return the fields that follow from configuration and headers."""
    text: Any = config.get_text_config()
    return {
        "architecture": architecture(network),
        "model_type": config.model_type,
        "geometry": _geometry(config, text),
        "parameters": _parameters(network),
        "tied": plan.tied is not None,
        "memory": _memory(network, headers, plan, stored),
        "free": _free(),
        "cache": _cache(text),
        "positions": text.max_position_embeddings,
    }


def _image_costs(network: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return costs of images of common sizes, and of a question with one up to the first token."""
    ids, flop = QUESTION, 0
    if settings:
        grid = image_grid(*IMAGE, **settings)
        side = network.config.vision_config.patch_size
        flop = vision_cost(network, [(grid.height // side, grid.width // side)]).flop
        ids += grid.tokens
    question = {"ids": ids, "flop": flop + prefill_cost(network, ids).flop}
    return {"images": _image_sizes(settings) if settings else {}, "question": question}


def _names(folder: CheckpointFolder) -> list[str]:
    """Return the names of the folder's files, or of its hub repository's."""
    return sorted({*folder.files, *(() if folder.repository is None else folder.repository.files)})


# --- the model ----------------------------------------------------------------------------------------------------


class _Described:
    """Headers of a model without files, derived from its modules."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._dtype = dtype

    def names(self) -> list[str]:
        return [*self._shapes]

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(self._dtype, self._shapes[name])

    def copies(self, name: str) -> bool:
        return False


def _open(folder: CheckpointFolder, config: PretrainedConfig) -> tuple[Any, Headers, Plan]:
    """Return the model on the meta device, adjusted to the files, with their headers and the load plan."""
    checkpoint = open_checkpoint(folder)
    network = meta_model(config)
    plan = make_plan(network, checkpoint, None)
    plan.refuse_if_amiss(network, checkpoint)
    text: Any = config.get_text_config()
    text.tie_word_embeddings = plan.tied is not None  # the files decide, as when loading
    if plan.projector_bias is not None:
        config.multimodal_projector_bias = plan.projector_bias
    network = meta_model(config)
    return network, checkpoint, make_plan(network, checkpoint, None)


def _describe(config: PretrainedConfig) -> tuple[Any, Headers, Plan]:
    """Return the same from the configuration alone."""
    network = meta_model(config)
    named = getattr(config, "dtype", None) or "bfloat16"
    dtype = getattr(torch, named.removeprefix("torch.")) if isinstance(named, str) else named
    headers = _Described(network, dtype)
    plan = Plan(plain={name: name for name in headers.names()}, has_head=True)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if head.weight is embedding.weight:
        paths = {id(module): path for path, module in network.named_modules()}
        plan.tied = (paths[id(head)], paths[id(embedding)])
    return network, headers, plan


def _parameters(network: torch.nn.Module) -> dict[str, int]:
    """Return part → parameters; 0 for a tied head."""
    counts = dict.fromkeys(("vision_tower", "projector", "embeddings", "language_model", "head"), 0)
    for name, parameter in network.named_parameters():
        full = canonical(name)
        part = next((part for start, part in _PARTS.items() if full.startswith(start)), "language_model")
        part = {EMBEDDING: "embeddings", HEAD: "head"}.get(full, part)
        counts[part] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def _geometry(config: PretrainedConfig, text: MistralConfig) -> dict[str, dict[str, Any]]:
    found = {"text": {name: getattr(text, name) for name in _TEXT.split()}}
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        found["vision"] = {name: getattr(vision, name) for name in _VISION.split()}
        found["vision"]["spatial_merge_size"] = getattr(config, "spatial_merge_size", 1)
    return found


# --- costs --------------------------------------------------------------------------------------------------------


def _weights(
    folder: CheckpointFolder,
    names: list[str],
    format: str,
    headers: Any,
    plan: Plan,
    stored: Quantization | None,
    here: bool,
) -> dict[str, Any]:
    """Describe the weight files: those in the folder, else those of the repository."""
    files = [name for name in weight_files(names, format) if name.endswith(".safetensors")]
    size, dtypes = 0, Counter[str]()
    if here:
        files = [path.name for path in headers.paths]
        size = sum(path.stat().st_size for path in headers.paths)
        for name in headers.names():
            spec = headers.spec(name)
            dtypes[str(spec.dtype).removeprefix("torch.")] += spec.nbytes
    elif folder.repository is not None:
        size = folder.repository.size(files)
    kinds = {packed.format.name for packed in plan.packed.values()}
    quantized = ", ".join(sorted(kinds)) or (None if stored is None else stored.quant_method)
    return {"files": files, "bytes": size, "dtypes": dict(dtypes), "quantized": quantized, "here": here}


def _memory(
    network: Any, headers: Headers, plan: Plan, stored: Quantization | None
) -> dict[str, dict[str, int]]:
    """Return precision → bytes of the weights, loaded and at most while loading. Packed weights stay packed."""
    where = placement(network, None)
    found = {}
    for name, form in FORMS.items():
        if stored is not None or plan.packed:
            if form.quantization is not None:
                continue
            form = Form(form.dtype, None if plan.packed else stored)  # also for files still missing
        kept = kept_bytes(network, headers, plan, form)
        weights = sum(kept.values())
        peak = sum(peak_bytes(network, headers, plan, form, where).values())
        mapped = _mapped(network, headers, plan, form, stored)
        loading = peak if stored is None else weights - mapped
        read = sum(size for path, size in kept.items() if _is_read(canonical(path), plan))
        found[name] = {"weights": weights, "mapped": mapped, "while_loading": loading, "read_per_token": read}
    return found


def _is_read(path: str, plan: Plan) -> bool:
    """Return whether a decode step reads a tensor: layers, head, and an embedding tied to the head."""
    return not path.startswith(tuple(_PARTS)) and (path != EMBEDDING or plan.tied is not None)


def _mapped(network: Any, headers: Headers, plan: Plan, form: Form, stored: Quantization | None) -> int:
    """Return the bytes of weights that stay in memory-mapped files, also for files still missing."""
    if not isinstance(stored, QuantizeConfig) or plan.packed:
        return mapped_bytes(network, headers, plan, form, placement(network, None))
    kept = kept_bytes(network, headers, plan, form)
    return sum(kept[f"{path}.weight"] for path in to_pack(network, stored, plan.tied or ()))


def _free() -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": str(device), "bytes": free_memory(device)}


def _cache(text: MistralConfig) -> dict[str, int]:
    """Return precision → bytes of keys and values of all layers, per 1,000 positions."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    return {name: 1000 * kv_bytes(text, dtype) for name, dtype in names.items()}


def _image_sizes(settings: dict[str, Any]) -> dict[str, Any]:
    dialects: tuple[Dialect, ...] = ("hf", "mistral")
    used: Dialect = settings["dialect"]
    rows = []
    for height, width in SIZES:
        costs = {
            dialect: image_grid(height, width, **{**settings, "dialect": dialect}) for dialect in dialects
        }
        read = image_grid(height, width, **settings)
        rows.append(
            {"width": width, "height": height, "read_width": read.width, "read_height": read.height}
            | {"tokens": read.tokens}
            | {dialect: grid.tokens for dialect, grid in costs.items()}
        )
    return {
        "dialect": used,
        "patch_size": settings["patch_size"],
        "merge": settings["merge"],
        "longest_edge": max(settings["longest_edge"]),
        "sizes": rows,
    }


def _tokenizer(folder: CheckpointFolder) -> dict[str, Any]:
    """Describe the folder's tokenizer in use; {} without one."""
    modes = {mode: folder.tokenizer_file(mode) for mode in ("auto", "mistral", "hf")}
    found = sorted({file.name for file in modes.values() if file is not None})
    if not found:
        return {}
    used = choose_tokenizer(folder)
    return {"used": used.name, "found": found, "ids": folder.token_ids(used).size}
