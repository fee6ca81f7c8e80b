"""The tree of errors that a person can meet, whose messages have a bound.

VitrailError
├── InputError            a question, image, message or argument that cannot be used
│   ├── ArgumentError     an argument that a call does not have, lacks, or that is of the wrong kind
│   ├── ImageError        an image that cannot be opened, is too large, too small or damaged
│   ├── PromptError       messages or templates that cannot become a prompt
│   └── ContextError      more positions than the model has, or an id beyond the vocabulary
├── ConfigError           a configuration with a missing, ill-typed or unknown value
├── CheckpointError       files of a checkpoint that are missing, damaged, foreign or do not fit
├── UnsupportedError      a thing that the documents name and Vitrail does not do
├── MissingPackageError   an optional package is needed; the message names the extra
├── CacheFull             a key/value cache has no block left; nothing was changed
└── OutOfMemory           the work needs more memory than there is
"""

_LONGEST = 10_000  # characters of a message


class VitrailError(Exception):
    """Base of every error that says what was expected, what came and what to do."""

    def __str__(self) -> str:
        text = super().__str__()  # which may show a value that somebody sent
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 2 :]}"


class InputError(VitrailError, ValueError):
    """A question, image, message or argument that cannot be used."""


class ArgumentError(InputError, TypeError):
    """An argument that a call does not have, that is missing, or that is of the wrong kind."""


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
    """A thing that users of the documents' API may expect and Vitrail does not do."""


class MissingPackageError(VitrailError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class CacheFull(VitrailError):
    """A key/value cache has no free block left; the cache is unchanged."""


class OutOfMemory(VitrailError, MemoryError):
    """The work needs more memory than there is."""
