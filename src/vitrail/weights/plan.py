"""Plan: which tensor of a checkpoint goes where in a model, and everything that does not fit; from headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.safetensors import TensorSpec
from vitrail.ops import dtypes
from vitrail.quant.config import Quantization, read_quantization
from vitrail.quant.formats import StoredWeight, WeightFormat, recognize
from vitrail.quant.policy import Choice, to_pack
from vitrail.quant.quantize_config import QuantizeConfig
from vitrail.weights.checkpoint import Checkpoint
from vitrail.weights.names import EMBEDDING, HEAD, PROJECTOR_BIASES, canonical, part

FLOATS = (*dtypes.FLOATS, torch.float64)  # dtypes allowed in files
_LARGE = 1 << 16  # bytes; smaller tensors are copied together into few pages
_ALIGNMENT = 16  # bytes: alignment required to use a plain tensor in place


@dataclass
class Plan:
    """Sources of a model's tensors, and everything that does not fit."""

    plain: dict[str, str] = field(default_factory=dict)  # model's tensor → name in the files
    packed: dict[str, StoredWeight] = field(default_factory=dict)  # module path → its weight, still mapped
    unreadable: set[str] = field(default_factory=set)  # paths of packed weights with unusable parts
    # Paths of packed weights that can be used in place in the mapped file.
    in_place: set[str] = field(default_factory=set)
    to_quantise: dict[str, Choice] = field(default_factory=dict)  # module path → quantisation while loading
    tied: tuple[str, str] | None = None  # paths of head and embedding
    has_head: bool = False
    projector_bias: bool | None = None  # whether the files have them, if the model was built otherwise
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    def stays_mapped(self, entry: TensorSpec, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether a plain tensor is used in place: a large one beside packed weights, of the requested dtype."""
        size = entry.nbytes
        fits = entry.dtype == dtype and device.type == "cpu" and entry.start % _ALIGNMENT == 0
        return fits and size >= _LARGE and bool(self.in_place)

    def refuse_if_amiss(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Raise one CheckpointError that names everything missing, unexpected or unfit."""
        missing, unexpected = map(checkpoint.shown, self.missing), map(checkpoint.shown, self.unexpected)
        groups = (
            (len(self.missing), "missing", listed(missing)),
            (len(self.unexpected), "unexpected", listed(unexpected)),
            (len(self.unfit), "of another shape or type", "; ".join(self.unfit[:200])),
        )
        faults = [f"{count} {word} ({names})" for count, word, names in groups if count]
        if faults:
            raise CheckpointError(
                f"the tensors in {checkpoint.folder} do not fit {type(model).__name__}: {', '.join(faults)}. "
                f"Check that {checkpoint.config_name} and the weights belong together and are complete."
            )


def make_plan(model: nn.Module, checkpoint: Checkpoint, quantization: Quantization | None) -> Plan:
    """Find the source of every tensor of `model`, and everything that does not fit; reads headers only.

    Args:
        model: on the meta device.
        checkpoint: to load.
        quantization: how to quantise while loading, or None.
    """
    plan = Plan()
    own = {canonical(name): name for name in own_tensors(model)}
    files = _by_canonical_name(checkpoint)
    _plan_packed(model, checkpoint, files, plan)
    parts = {part(name) for name in own}
    partial = _is_part(model, checkpoint)
    for name, file_name in files.items():
        if name in own:
            plan.plain[own[name]] = file_name
        elif not (partial and part(name) and part(name) not in parts):
            plan.unexpected.append(file_name)
    done = plan.plain.keys() | {f"{path}.weight" for path in (*plan.packed, *plan.unreadable)}
    plan.missing = [name for name in own.values() if name not in done]
    plan.has_head = HEAD in own
    if HEAD in own and own[HEAD] in plan.missing and own.get(EMBEDDING) in done:
        plan.missing.remove(own[HEAD])
        plan.tied = (own[HEAD].rpartition(".")[0], own[EMBEDDING].rpartition(".")[0])
    _plan_projector_bias(own, files, plan)
    _check_shapes(model, checkpoint, plan)
    if quantization is not None:
        chosen = to_pack(model, quantization, plan.tied or ())
        plan.to_quantise = {path: choice for path, choice in chosen.items() if path not in plan.packed}
        for choice in plan.to_quantise.values():
            choice.format.refuse_unless_quantizes()
    return plan


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor in a checkpoint of `model`: parameters (tied ones under each name) and persistent buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in model.named_modules(remove_duplicate=False)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return {**parameters, **kept}


def _by_canonical_name(checkpoint: Checkpoint) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in checkpoint.names():
        same = names.setdefault(canonical(name), name)
        if same != name:
            raise CheckpointError(
                f"{checkpoint.folder} holds one tensor under two names, {same!r} and {name!r}."
            )
    return names


def _plan_packed(model: nn.Module, checkpoint: Checkpoint, files: dict[str, str], plan: Plan) -> None:
    """Take the tensors of quantised modules, recognised by the keys beside their weight, out of `files`."""
    matrices = {
        canonical(f"{path}."): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding))
    }
    parts: dict[str, dict[str, str]] = {prefix: {} for prefix in matrices}
    for name, file_name in files.items():
        prefix, rest = _split(name)
        if prefix in matrices and rest != "bias":
            parts[prefix][rest] = file_name
    for prefix, names in parts.items():
        path, module = matrices[prefix]
        if all(key == "weight" for key in names):
            continue
        tensors = {key: checkpoint.tensor(file_name) for key, file_name in names.items()}
        format = recognize(tensors)
        if format is None or not (format.tables or isinstance(module, nn.Linear)):
            continue
        for file_name in names.values():
            del files[canonical(file_name)]
        shape = (
            (module.out_features, module.in_features)
            if isinstance(module, nn.Linear)
            else (module.num_embeddings, module.embedding_dim)
        )
        group = _group_of(model, format, shape[1])
        try:
            packed = format.from_state(path, tensors, shape, torch.float32, group)
        except CheckpointError as error:
            plan.unfit.append(str(error).rstrip("."))
            plan.unreadable.add(path)
            continue
        plan.packed[path] = StoredWeight(format, packed)
        if format.can_be_mapped(packed):
            plan.in_place.add(path)
        _compare(plan, f"{path}.weight", packed.shape, shape)


def _group_of(model: nn.Module, format: WeightFormat, columns: int) -> int | None:
    """Return the group for rows of `columns` weights from the model's configuration, or None."""
    config = read_quantization(getattr(getattr(model, "config", None), "quantization_config", None))
    return format.group(columns, config.group) if isinstance(config, QuantizeConfig) else None


def _split(name: str) -> tuple[str, str]:
    """Split a name into the module's path with its last dot, and the key."""
    at = name.rfind(".weight.")
    if at >= 0:
        return name[: at + 1], name[at + 1 :]
    prefix, dot, rest = name.rpartition(".")
    return prefix + dot, rest


def _compare(plan: Plan, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        plan.unfit.append(f"{name} is {found} in the files, {wanted} in the model")


def _check_shapes(model: nn.Module, checkpoint: Checkpoint, plan: Plan) -> None:
    own = own_tensors(model)
    for name, file_name in plan.plain.items():
        entry = checkpoint.spec(file_name)
        if name in own:
            _compare(plan, name, entry.shape, tuple(own[name].shape))
            if own[name].is_floating_point() and entry.dtype not in FLOATS:
                plan.unfit.append(f"{name} is {entry.dtype} in the files, a float was expected")


def _is_part(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Return whether parts may be missing: no head, a folder of another model type, or an unwanted tower."""
    if getattr(model, "vision", True) is False or getattr(model, "get_output_embeddings", bool)() is None:
        return True
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return bool(kind) and checkpoint.kind not in (None, kind)


def _plan_projector_bias(own: Mapping[str, str], files: Mapping[str, str], plan: Plan) -> None:
    """Published configs lack multimodal_projector_bias: it follows from both biases being present or absent."""
    present = [name in files for name in PROJECTOR_BIASES]
    built = [name in own for name in PROJECTOR_BIASES]
    weights = [name.replace(".bias", ".weight") for name in PROJECTOR_BIASES]
    if (
        not all(name in own for name in weights)
        or len(set(present)) > 1
        or len(set(built)) > 1
        or present == built
    ):
        return
    plan.projector_bias = present[0]
    for name, weight in zip(PROJECTOR_BIASES, weights, strict=True):
        own_name = own[weight].removesuffix("weight") + "bias"
        if present[0]:
            plan.unexpected.remove(files[name])
            plan.plain[own_name] = files[name]
        else:
            plan.missing.remove(own_name)
