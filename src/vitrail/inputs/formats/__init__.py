"""Built-in prompt formats: Mistral's v1 to v15 and the Pixtral Large card's, from messages to ids with any tokenizer."""

from vitrail.inputs.formats.building import build_prompt, fim_prompt
from vitrail.inputs.formats.built import BuiltPrompt
from vitrail.inputs.formats.description import Format
from vitrail.inputs.formats.encoding import Encoder, encode_prompt, fit_prompt
from vitrail.inputs.formats.versions import FORMATS, find_format

__all__ = [
    "FORMATS",
    "BuiltPrompt",
    "Encoder",
    "Format",
    "build_prompt",
    "encode_prompt",
    "fim_prompt",
    "find_format",
    "fit_prompt",
]
