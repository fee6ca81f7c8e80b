"""Entry point of the command line: error messages and exit status.

Exit status: 0 done · 2 a user's mistake, with a one-line message · 130 interrupted · 1 anything else (a bug,
with its traceback).
"""

import os
import sys
import warnings
from collections.abc import Sequence

import click

from vitrail._version import __version__
from vitrail.cli.ask import ask
from vitrail.cli.bench import bench
from vitrail.cli.chat import chat
from vitrail.cli.convert import convert
from vitrail.cli.info import info
from vitrail.cli.output import echo, give_up, one_line, prepare_streams
from vitrail.cli.prompt import prompt
from vitrail.cli.quantize import quantize
from vitrail.cli.read import read
from vitrail.cli.tokens import tokens
from vitrail.cli.train import train
from vitrail.errors import InputError, VitrailError

EXAMPLES = """\b
Examples:
  vitrail ask sign.png "What does it say?"
  vitrail ask front.jpg back.jpg "What differs?" --model ./pixtral-12b
  vitrail chat invoice.pdf --model ./pixtral-12b
  vitrail tokens scan.png --model ./pixtral-12b
"""

COMPLETION = "_VITRAIL_COMPLETE"  # click's naming convention
SMALLER = "Use a smaller or quantised model (vitrail quantize), --dtype bfloat16, or --max-image-tokens."


@click.group(
    epilog=EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="vitrail", message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Ask questions about images, answered by Mistral's Pixtral family on this machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


app.add_command(ask)
app.add_command(chat)
app.add_command(convert)
app.add_command(quantize)
app.add_command(tokens)
app.add_command(info)
app.add_command(prompt)
app.add_command(train)
app.add_command(read)
app.add_command(bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors of the user go to stderr."""
    prepare_streams()
    if sys.stdout is None:
        return _complain("standard output is closed; give it a file, a pipe or /dev/null.")
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # one line, without file name and source
        try:
            return _invoke(list(sys.argv[1:] if arguments is None else arguments))
        except click.ClickException as error:
            return _complain(error.format_message(), _hint(error))
        except VitrailError as error:
            return _complain(str(error))
        except OSError as error:
            return _complain(_refusal(error))
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            return _complain("there is not enough memory for this model and these images.", SMALLER)
        except (click.Abort, KeyboardInterrupt):
            return 130


def _is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch or Python is a failed allocation."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _invoke(words: list[str]) -> int:
    if instruction := os.environ.get(COMPLETION):
        return _complete(instruction)
    try:
        with app.make_context("vitrail", words) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except BrokenPipeError:
        # The pipe was closed (`| head`); Python would raise again when it closes stdout.
        give_up(sys.stdout)
    return 0


def _complete(instruction: str) -> int:
    """Run shell completion: "zsh_source" prints the completion script, which calls with "zsh_complete"."""
    from click.shell_completion import shell_complete

    if shell_complete(app, {}, "vitrail", COMPLETION, instruction):
        raise InputError(f"{COMPLETION} is bash_source, zsh_source or fish_source, got {instruction!r}")
    return 0


def _refusal(error: OSError) -> str:
    """Return a message for an OSError: of the named file, else of the output, most often on a full disk."""
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    give_up(sys.stdout)  # every line was flushed, nothing is lost
    return f"the output cannot be written: {reason}"


def _complain(message: str, hint: str = "") -> int:
    text = one_line(message)
    text += "" if text.endswith((".", "?", "!")) else "."
    echo(f"vitrail: {text} {hint}".rstrip(), err=True)
    return 2


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try '{context.command_path} --help'." if context is not None else ""


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    echo(f"vitrail: warning: {one_line(str(message))}", err=True)
