"""VitrailError and its subclasses: the errors for a user's mistakes, with messages of bounded length.

VitrailError
├── InputError            an invalid question, image, message or argument
│   ├── ArgumentError     an argument that is unknown, missing or of the wrong type
│   ├── ImageError        an image that cannot be opened, is too large, too small or damaged
│   ├── PromptError       messages or templates that cannot become a prompt
│   └── ContextError      more positions than the model has, or an id beyond the vocabulary
├── ConfigError           a configuration with a missing, ill-typed or unknown value
├── CheckpointError       files of a checkpoint that are missing, damaged, foreign or do not fit
├── UnsupportedError      a documented function that Vitrail lacks
├── MissingPackageError   an optional package is needed; the message names the extra
├── CacheFull             a key/value cache has no free block left; it is unchanged
└── OutOfMemory           the work needs more memory than there is
"""

_LONGEST = 10_000  # characters of a message


class VitrailError(Exception):
    """Base of all errors; the message gives what was expected, what came and what to do."""

    def __str__(self) -> str:
        text = super().__str__()  # may contain a caller's value of any length
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 2 :]}"


class InputError(VitrailError, ValueError):
    """An invalid question, image, message or argument."""


class ArgumentError(InputError, TypeError):
    """An argument that is unknown, missing or of the wrong type."""


class ImageError(InputError):
    """An image that cannot be opened, is too large, too small or damaged."""


class PromptError(InputError):
    """Messages or a template that cannot become a prompt."""


class ContextError(InputError):
    """More positions than the model has, or an id beyond the vocabulary."""


class ConfigError(VitrailError, ValueError):
    """A configuration with a missing, ill-typed or unknown value."""


class CheckpointError(VitrailError):
    """Files of a checkpoint that are missing, damaged, foreign or do not fit the model."""


class UnsupportedError(VitrailError, NotImplementedError):
    """A documented function (of transformers or the file formats) that Vitrail lacks."""


class MissingPackageError(VitrailError, ImportError):
    """A missing optional package; the message names its extra."""


class CacheFull(VitrailError):
    """A key/value cache has no free block left; the cache is unchanged."""


class OutOfMemory(VitrailError, MemoryError):
    """The work needs more memory than there is."""
