"""Built-in prompt formats: Mistral's v1 to v15 and the Pixtral Large card's, from messages to ids."""

from vitrail.prompts.builtin.build import build_prompt, fim_prompt
from vitrail.prompts.builtin.built_prompt import BuiltPrompt
from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.encode import Encoder, encode_marked, encode_prompt, fit_prompt
from vitrail.prompts.builtin.versions import FORMATS, find_format

__all__ = [
    "FORMATS",
    "BuiltPrompt",
    "Encoder",
    "Format",
    "build_prompt",
    "encode_marked",
    "encode_prompt",
    "fim_prompt",
    "find_format",
    "fit_prompt",
]
