"""Options shared by commands: model, computation, sampling, limits of PDFs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.images.pdf import PdfLimits

# --cache → cache_dtype of generate().
_CACHES = {"q8": "int8", "bf16": "bfloat16", "f32": "float32"}

Command = TypeVar("Command", bound=Callable[..., Any])

_PDF = {"pdf_pages": "max_pages", "pdf_pixels": "max_pixels", "pdf_seconds": "max_seconds"}


def added(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Return the command with these options, in this order in its help."""
    for option in reversed(options):
        command = option(command)
    return command


def complete_formats(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete names of prompt formats, as `shell_complete=` of an option."""
    from vitrail.processor.prompt_view import FORMAT_NAMES

    return complete_among(*FORMAT_NAMES)(context, parameter, begun)


def refuse_format(flag: str, name: str | None) -> None:
    """Raise InputError for an unknown prompt format."""
    from vitrail.processor.prompt_view import FORMAT_NAMES

    if name is not None and name not in FORMAT_NAMES:
        raise InputError(f"{flag} is one of {', '.join(FORMAT_NAMES)}; got {name!r}")


class Named(click.ParamType):  # type: ignore[type-arg]
    """A name that is not empty: Path("") would be the current folder."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the name is empty.", param, ctx)
        return value


class NamedPath(Named):
    """A path that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Path(super().convert(value, param, ctx))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of files."""
        return complete_files(ctx, param, incomplete)


def complete_among(*names: str) -> Callable[..., list[CompletionItem]]:
    """Return a `shell_complete=` for these names, without a check of the value."""
    return lambda context, parameter, begun: [CompletionItem(one) for one in names if one.startswith(begun)]


def complete_files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete files and folders, as `shell_complete=` of arguments with other values too."""
    return [CompletionItem(begun, type="file")]


def device_option(command: Command) -> Command:
    """Add --device."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="NAME",
        shell_complete=complete_among("auto", "cpu", "cuda"),
        help="auto, cpu or cuda.",
    )(command)


# Each adds one option. --model: None: the embedded reader.
model_option = click.option(
    "-m",
    "--model",
    metavar="FOLDER",
    type=Named(),
    shell_complete=complete_files,
    help="Checkpoint: a folder, or a name on the Hugging Face hub. [default: the embedded reader]",
)
revision_option = click.option(
    "--revision", metavar="NAME", help="Branch, tag or commit of a model on the hub. [default: main]"
)
image_tokens_option = click.option(
    "--max-image-tokens",
    type=click.IntRange(min=2),
    metavar="N",
    help="Shrink each image until it costs at most N tokens.",
)


def source_options(command: Command) -> Command:
    """Add --format and --revision, for `Source.open`."""
    return added(
        command,
        click.option(
            "--format",
            "format_name",
            type=click.Choice(["hf", "mistral"]),
            help="Which files to read where MODEL has both. [default: hf]",
        ),
        revision_option,
    )


def answer_options(command: Command) -> Command:
    """Add the options of an answer: limits of images and answer, sampling, adapter, dtype, cache and device.

    `refuse_idle` checks them.
    """
    return added(
        command,
        image_tokens_option,
        click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="Longest answer. [default: the checkpoint's, else 512]",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="T",
            help="Draw from the probabilities at this temperature. [default: 0, always the likeliest]",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(min=0, max=1, min_open=True),
            metavar="P",
            help="Draw from the likeliest tokens that make up P.",
        ),
        click.option(
            "--top-k", type=click.IntRange(min=1), metavar="K", help="Draw from the K likeliest tokens."
        ),
        click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Same seed, same draw."),
        click.option(
            "--adapter",
            metavar="FOLDER",
            type=Named(),
            shell_complete=complete_files,
            help="A LoRA adapter that `vitrail train` or PEFT saved.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            help="Numbers to compute with. [default: the checkpoint's; float32 for the embedded reader]",
        ),
        click.option(
            "--cache",
            "cache_dtype",
            type=click.Choice(list(_CACHES)),
            callback=lambda _context, _option, name: _CACHES.get(name),
            help="Numbers of the cache; q8 is 8 bits. [default: those computed with]",
        ),
        device_option,
    )


def pdf_options(command: Command) -> Command:
    """Add --pdf-pages, --pdf-pixels and --pdf-seconds, for `take_pdf_limits`."""
    return added(
        command,
        click.option(
            "--pdf-pages",
            type=click.IntRange(min=1),
            metavar="N",
            help="Most pages of a PDF; a longer one is refused. [default: 50]",
        ),
        click.option(
            "--pdf-pixels",
            type=click.IntRange(min=1, max=100_000_000),
            metavar="N",
            help="Most pixels of a PDF's page; a larger one is rendered coarser. [default: 8 million]",
        ),
        click.option(
            "--pdf-seconds",
            type=click.FloatRange(min=0, min_open=True),
            metavar="S",
            help="Longest time to render a PDF. [default: 60]",
        ),
    )


def take_pdf_limits(options: dict[str, Any]) -> "PdfLimits":
    """Remove the values of `pdf_options` from `options` and return them as limits."""
    from vitrail.images.pdf import PdfLimits

    given = {name: options.pop(flag, None) for flag, name in _PDF.items()}
    return PdfLimits(**{name: value for name, value in given.items() if value is not None})


def take_generation(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of `answer_options` from `options` and return them as keywords of generate()."""
    names = ("max_new_tokens", "cache_dtype", "temperature", "top_p", "top_k", "seed")
    given = {name: options.pop(name) for name in names}
    if not given["temperature"]:
        del given["temperature"]
    drawn = {"do_sample": "temperature" in given, **given}
    return {name: value for name, value in drawn.items() if value is not None}


def refuse_idle(options: dict[str, Any]) -> None:
    """Raise InputError for sampling options without sampling, which would have no effect."""
    idle = [name for name in ("top_p", "top_k", "seed") if options[name] is not None]
    if idle and not options["temperature"]:
        flag = "--" + idle[0].replace("_", "-")
        raise InputError(
            f"{flag} needs --temperature above 0; without it the likeliest token is always taken"
        )
