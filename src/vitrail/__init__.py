"""Public names of Vitrail, imported from their modules on first use (PEP 562).

These names are the API. The modules are internal and may move.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitrail._elsewhere import ELSEWHERE, NotInVitrail
from vitrail._moved import install as _install
from vitrail._version import __version__

if TYPE_CHECKING:
    from vitrail.adapters.config import LoraConfig as LoraConfig
    from vitrail.assistant import Assistant as Assistant, ReplyStream as ReplyStream, load as load
    from vitrail.auto import (
        AutoConfig as AutoConfig,
        AutoImageProcessor as AutoImageProcessor,
        AutoModel as AutoModel,
        AutoModelForCausalLM as AutoModelForCausalLM,
        AutoModelForImageTextToText as AutoModelForImageTextToText,
        AutoModelForMultimodalLM as AutoModelForMultimodalLM,
        AutoModelForVision2Seq as AutoModelForVision2Seq,
        AutoProcessor as AutoProcessor,
        AutoTokenizer as AutoTokenizer,
    )
    from vitrail.configs import (
        LlavaConfig as LlavaConfig,
        Ministral3Config as Ministral3Config,
        Mistral3Config as Mistral3Config,
        MistralConfig as MistralConfig,
        PixtralVisionConfig as PixtralVisionConfig,
        PretrainedConfig as PretrainedConfig,
    )
    from vitrail.configs.generation import GenerationConfig as GenerationConfig
    from vitrail.dialogue import Attachment as Attachment, Dialogue as Dialogue
    from vitrail.errors import (
        ArgumentError as ArgumentError,
        CacheFull as CacheFull,
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        ContextError as ContextError,
        ImageError as ImageError,
        InputError as InputError,
        MissingPackageError as MissingPackageError,
        OutOfMemory as OutOfMemory,
        PromptError as PromptError,
        UnsupportedError as UnsupportedError,
        VitrailError as VitrailError,
    )
    from vitrail.files.download import Download as Download, watch_downloads as watch_downloads
    from vitrail.generate.criteria import (
        EosTokenCriteria as EosTokenCriteria,
        LogitsProcessor as LogitsProcessor,
        LogitsProcessorList as LogitsProcessorList,
        MaxLengthCriteria as MaxLengthCriteria,
        MaxTimeCriteria as MaxTimeCriteria,
        StoppingCriteria as StoppingCriteria,
        StoppingCriteriaList as StoppingCriteriaList,
        StopStringCriteria as StopStringCriteria,
    )
    from vitrail.generate.loop import stream_text as stream_text
    from vitrail.generate.outputs import GenerateOutput as GenerateOutput
    from vitrail.generate.seed import set_seed as set_seed
    from vitrail.generate.stream import (
        TextIteratorStreamer as TextIteratorStreamer,
        TextStreamer as TextStreamer,
    )
    from vitrail.images.batch_feature import BatchFeature as BatchFeature
    from vitrail.images.fetch import FetchPolicy as FetchPolicy
    from vitrail.images.grid import Grid as Grid, image_grid as image_grid, image_tokens as image_tokens
    from vitrail.images.limits import ImageLimits as ImageLimits, PdfLimits as PdfLimits
    from vitrail.images.load import load_image as load_image
    from vitrail.images.pdf import load_pages as load_pages
    from vitrail.images.processor import (
        PixtralImageProcessor as PixtralImageProcessor,
        PixtralImageProcessorFast as PixtralImageProcessorFast,
    )
    from vitrail.images.request import (
        image_request as image_request,
        set_image_defaults as set_image_defaults,
    )
    from vitrail.kv.cache import KVCache as KVCache
    from vitrail.kv.dynamic import DynamicCache as DynamicCache
    from vitrail.model.causal import MistralForCausalLM as MistralForCausalLM
    from vitrail.model.decoder import MistralModel as MistralModel
    from vitrail.model.multimodal import LlavaModel as LlavaModel, Mistral3Model as Mistral3Model
    from vitrail.model.outputs import (
        BaseModelOutput as BaseModelOutput,
        BaseModelOutputWithPast as BaseModelOutputWithPast,
        CausalLMOutputWithPast as CausalLMOutputWithPast,
        LlavaCausalLMOutputWithPast as LlavaCausalLMOutputWithPast,
        LlavaModelOutputWithPast as LlavaModelOutputWithPast,
        Mistral3CausalLMOutputWithPast as Mistral3CausalLMOutputWithPast,
        Mistral3ModelOutputWithPast as Mistral3ModelOutputWithPast,
        ModelOutput as ModelOutput,
    )
    from vitrail.model.pretrained import PreTrainedModel as PreTrainedModel
    from vitrail.model.vision import PixtralVisionModel as PixtralVisionModel
    from vitrail.model.vlm import (
        LlavaForConditionalGeneration as LlavaForConditionalGeneration,
        Mistral3ForConditionalGeneration as Mistral3ForConditionalGeneration,
    )
    from vitrail.ops.cpu.library import (
        available_kernels as available_kernels,
        kernel_status as kernel_status,
        use_kernels as use_kernels,
    )
    from vitrail.pipelines import ImageTextToTextPipeline as ImageTextToTextPipeline, pipeline as pipeline
    from vitrail.processor.load import processor_parts as processor_parts
    from vitrail.processor.processor import PixtralProcessor as PixtralProcessor
    from vitrail.prompts.builtin.build import build_prompt as build_prompt
    from vitrail.quant.bitsandbytes_config import BitsAndBytesConfig as BitsAndBytesConfig
    from vitrail.quant.quantize_config import QuantizeConfig as QuantizeConfig
    from vitrail.reader import embedded_path as embedded_path
    from vitrail.reader.files import FileReading as FileReading
    from vitrail.responses.events import (
        ArgumentsDelta as ArgumentsDelta,
        CallBegin as CallBegin,
        CallEnd as CallEnd,
        Fault as Fault,
        ReasoningDelta as ReasoningDelta,
        Response as Response,
        TextDelta as TextDelta,
        ToolCall as ToolCall,
    )
    from vitrail.responses.parser import ResponseParser as ResponseParser
    from vitrail.responses.reply import PromptSize as PromptSize, Reply as Reply
    from vitrail.tokenizer.mistral import (
        MistralCommonBackend as MistralCommonBackend,
        MistralCommonTokenizer as MistralCommonTokenizer,
    )
    from vitrail.train.job import TrainingJob as TrainingJob
    from vitrail.train.settings import TrainingSettings as TrainingSettings
    from vitrail.weights.convert import convert as convert
    from vitrail.weights.devices import infer_device as infer_device


_install()

# Module → names, imported on first use. Type checkers read the imports above; a test compares the two.
_HOMES: dict[str, tuple[str, ...]] = {
    "assistant": ("Assistant", "ReplyStream", "load"),
    "files.download": ("Download", "watch_downloads"),
    "generate.loop": ("stream_text",),
    "generate.outputs": ("GenerateOutput",),
    "ops.cpu.library": ("available_kernels", "kernel_status", "use_kernels"),
    "processor.load": ("processor_parts",),
    "prompts.builtin.build": ("build_prompt",),
    "reader": ("embedded_path",),
    "reader.files": ("FileReading",),
    "responses.reply": ("PromptSize", "Reply"),
    "train.job": ("TrainingJob",),
    "train.settings": ("TrainingSettings",),
    "weights.convert": ("convert",),
    "adapters.config": ("LoraConfig",),
    "auto": (
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        "AutoModelForVision2Seq",
        "AutoProcessor",
        "AutoTokenizer",
    ),
    "configs": (
        "LlavaConfig",
        "Ministral3Config",
        "Mistral3Config",
        "MistralConfig",
        "PixtralVisionConfig",
        "PretrainedConfig",
    ),
    "configs.generation": ("GenerationConfig",),
    "dialogue": ("Attachment", "Dialogue"),
    "errors": (
        "ArgumentError",
        "CacheFull",
        "CheckpointError",
        "ConfigError",
        "ContextError",
        "ImageError",
        "InputError",
        "MissingPackageError",
        "OutOfMemory",
        "PromptError",
        "UnsupportedError",
        "VitrailError",
    ),
    "kv.cache": ("KVCache",),
    "kv.dynamic": ("DynamicCache",),
    "generate.criteria": (
        "EosTokenCriteria",
        "LogitsProcessor",
        "LogitsProcessorList",
        "MaxLengthCriteria",
        "MaxTimeCriteria",
        "StopStringCriteria",
        "StoppingCriteria",
        "StoppingCriteriaList",
    ),
    "generate.seed": ("set_seed",),
    "weights.devices": ("infer_device",),
    "generate.stream": ("TextIteratorStreamer", "TextStreamer"),
    "images.batch_feature": ("BatchFeature",),
    "images.fetch": ("FetchPolicy",),
    "images.grid": ("Grid", "image_grid", "image_tokens"),
    "images.processor": ("PixtralImageProcessor", "PixtralImageProcessorFast"),
    "images.limits": ("ImageLimits", "PdfLimits"),
    "images.load": ("load_image",),
    "tokenizer.mistral": ("MistralCommonBackend", "MistralCommonTokenizer"),
    "images.pdf": ("load_pages",),
    "images.request": ("image_request", "set_image_defaults"),
    "processor.processor": ("PixtralProcessor",),
    "responses.parser": ("ResponseParser",),
    "responses.events": (
        "ArgumentsDelta",
        "CallBegin",
        "CallEnd",
        "Fault",
        "ReasoningDelta",
        "Response",
        "TextDelta",
        "ToolCall",
    ),
    "model.causal": ("MistralForCausalLM",),
    "model.decoder": ("MistralModel",),
    "model.multimodal": ("LlavaModel", "Mistral3Model"),
    "model.outputs": (
        "BaseModelOutput",
        "BaseModelOutputWithPast",
        "CausalLMOutputWithPast",
        "LlavaCausalLMOutputWithPast",
        "LlavaModelOutputWithPast",
        "Mistral3CausalLMOutputWithPast",
        "Mistral3ModelOutputWithPast",
        "ModelOutput",
    ),
    "model.pretrained": ("PreTrainedModel",),
    "model.vision": ("PixtralVisionModel",),
    "model.vlm": ("LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"),
    "pipelines": ("ImageTextToTextPipeline", "pipeline"),
    "quant.bitsandbytes_config": ("BitsAndBytesConfig",),
    "quant.quantize_config": ("QuantizeConfig",),
}
_HOME_OF: dict[str, str] = {name: home for home, names in _HOMES.items() for name in names}

# Names of version 0.1.0 → present names; removed with the next minor version.
_RENAMED = {"Turn": "Reply"}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Import `name` from its module and store it, so that later look-ups are free."""
    new = _RENAMED.get(name, name)
    home = _HOME_OF.get(new)
    if home is None:
        if name in ELSEWHERE:  # not an AttributeError, whose message `from vitrail import …` drops
            raise NotInVitrail(f"vitrail has no {name}: {ELSEWHERE[name]}.", name="vitrail")
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    if new != name:
        warnings.warn(
            f"vitrail.{name} is called vitrail.{new} now; use that name.", DeprecationWarning, stacklevel=2
        )
    value = getattr(import_module(f"vitrail.{home}"), new)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
