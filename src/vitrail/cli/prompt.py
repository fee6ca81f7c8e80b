"""`vitrail prompt FILE`: options and output. Prompts: processor/prompt_view.py."""

from typing import TYPE_CHECKING

import click

from vitrail.cli.files import read_input, read_tools
from vitrail.cli.options import Named, complete_files, complete_formats, refuse_format
from vitrail.cli.output import echo_json
from vitrail.cli.prompt_printer import PromptPrinter
from vitrail.cli.source import embedded
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.prompts.conversation_file import Conversation

EXAMPLES = """\b
Examples:
  vitrail prompt chat.json --tokenizer ./pixtral-12b
  vitrail prompt chat.jsonl --tokenizer tekken.json --json > ids.jsonl
  vitrail prompt chat.json --tokenizer ./mistral-small-3.1 --diff v7-tekken
  echo '[{"role": "user", "content": "[INST]"}]' | vitrail prompt - --ids
"""


@click.command("prompt", epilog=EXAMPLES)
@click.argument("file", metavar="FILE", type=Named(), shell_complete=complete_files)
@click.option(
    "-t",
    "--tokenizer",
    metavar="FILE|MODEL",
    type=Named(),
    shell_complete=complete_files,
    help="A tokenizer's file, a checkpoint's folder, or a name on the Hugging Face hub. [default: the embedded reader]",
)
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    shell_complete=complete_formats,
    help="v1 … v15 or card; auto, the tokenizer's own; template, the checkpoint's. [default: template, else auto]",
)
@click.option(
    "--tools",
    metavar="FILE",
    type=Named(),
    shell_complete=complete_files,
    help="A JSON list of tools, for conversations that bring none.",
)
@click.option("--ids", "with_ids", is_flag=True, help="Print the ids too.")
@click.option("--json", "as_json", is_flag=True, help="Print one line a conversation: ids, text, grids.")
@click.option(
    "--diff",
    metavar="NAME",
    shell_complete=complete_formats,
    help="Show how the prompt differs in the format NAME.",
)
def prompt(
    file: str,
    tokenizer: str | None,
    format_name: str | None,
    tools: str | None,
    with_ids: bool,
    as_json: bool,
    diff: str | None,
) -> None:
    """Show the prompt that a conversation becomes, to the last token.

    FILE is a JSON list of messages, an object with "messages" and "tools", or such an object on every line (JSON
    Lines); '-' is standard input. An image may be given by its size alone: {"type": "image_url", "image_url":
    {"url": "size:640x480"}}.
    """
    if diff is not None and (as_json or with_ids):
        raise InputError("--diff shows differences; leave out --json and --ids")
    from vitrail.prompts.conversation_file import read_conversations

    conversations = read_conversations(read_input(file), file)
    if tools is not None:
        conversations = [_with_tools(one, read_tools(tools)) for one in conversations]
    from vitrail.processor.prompt_view import open_maker

    refuse_format("--format", format_name)
    refuse_format("--diff", diff)

    maker = open_maker(tokenizer or embedded())
    printer = PromptPrinter(numbered=len(conversations) > 1)
    for one in conversations:
        view = maker.make(one, format_name)
        if as_json:
            echo_json(view.as_json())
        elif diff is not None:
            printer.differences(view, maker.make(one, diff))
        else:
            printer.show(view, with_ids=with_ids)


def _with_tools(conversation: "Conversation", tools: list[object]) -> "Conversation":
    from dataclasses import replace

    if conversation.tools is not None:
        where = f"{conversation.place}: " if conversation.place else ""
        raise InputError(f"{where}the conversation has tools of its own; leave out --tools")
    return replace(conversation, tools=tools)
