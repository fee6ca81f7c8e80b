"""ChatRoom: the loop of `vitrail chat`. Commands: chat_commands.py; conversation: dialogue.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vitrail.assistant import file_part
from vitrail.cli.chat_lines import Lines
from vitrail.cli.interrupt import stoppable
from vitrail.cli.output import echo, echo_json
from vitrail.cli.record import answer_record
from vitrail.cli.screen import Printer, waiting
from vitrail.dialogue import Attachment, Dialogue
from vitrail.errors import InputError, VitrailError
from vitrail.images.pdf import PdfLimits, load_pages
from vitrail.responses.events import Piece
from vitrail.responses.reply import Reply


@dataclass(frozen=True)
class Settings:
    """Options of `vitrail chat`. name: the model's name in JSON records."""

    name: str
    as_json: bool = False
    pdf_limits: PdfLimits = field(default_factory=PdfLimits)
    max_image_tokens: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # keywords of generate()

    def of_attempt(self, attempt: int) -> dict[str, Any]:
        """Return keywords of generate(). attempt: earlier answers to this question, added to the seed."""
        given = dict(self.generation)
        return {**given, "seed": given["seed"] + attempt} if "seed" in given else given


@dataclass
class Totals:
    """Sums over the answers of this run. seconds: of prefill and decoding."""

    answers: int = 0
    computed: int = 0
    reused: int = 0
    encoded: int = 0
    completion: int = 0
    seconds: float = 0.0

    def add(self, reply: Reply) -> None:
        """Add an answer."""
        self.answers += 1
        self.computed += reply.computed
        self.reused += reply.reused
        self.encoded += reply.images_encoded
        self.completion += reply.completion_tokens
        self.seconds += reply.seconds["total"]


class ChatRoom:
    """A conversation between standard input and a model. Errors are shown on a terminal and end the program in a pipe."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: Settings,
        run_command: "Callable[[ChatRoom, str, str], None]",
    ) -> None:
        """Begin empty; `run_command` is called for lines with a slash: (chat, name, text after it)."""
        self.settings = settings
        self._run_command = run_command
        self.lines = Lines()
        self._say: Callable[[str], None] = _to_nobody
        self.dialogue = Dialogue(
            model, processor, max_image_tokens=settings.max_image_tokens, pages=self._open_pages
        )
        self.pending: list[Attachment] = []
        self.last: Reply | None = None
        self.totals = Totals()
        self.files: set[str] = set()  # written or read by this run: /save may overwrite them
        self.going_on = True
        self._attempt = 0

    def begin(self, messages: Sequence[dict[str, Any]], system: str | None, images: Sequence[str]) -> None:
        """Apply the arguments of the command line."""
        self.load(messages)
        if system is not None:
            self.dialogue.system = system
        for name in images:
            self.attach(name)

    def run(self) -> None:
        """Run until the end of the input or /quit."""
        if self.lines.is_terminal:
            self.tell(f"{self.settings.name}. A message is a line; /help explains the rest, Ctrl-D leaves.")
        while self.going_on:
            try:
                line = self.lines.next(self._prompt())
                if line is None:
                    break
                self._take(line)
            except VitrailError as error:
                if not self.lines.is_terminal:
                    raise InputError(f"line {self.lines.number} of standard input: {error}") from error
                self.tell(str(error))
            except KeyboardInterrupt:
                if not self.lines.is_terminal:
                    raise
                echo(err=True)
                self.tell("Ctrl-D or /quit leaves.")

    def tell(self, text: str) -> None:
        """Print a remark on stderr, so that stdout holds answers only."""
        echo(text, err=True, dim=True)

    def attach(self, name: str) -> Attachment:
        """Open an image or PDF for the next message."""
        with self._opening(name):
            attachment = self.dialogue.attach(file_part(name))
        self.pending.append(attachment)
        return attachment

    def load(self, messages: Sequence[dict[str, Any]]) -> None:
        """Replace the messages and drop pending images."""
        with self._opening("the conversation"):
            self.dialogue.load(messages)
        self.pending.clear()

    def answer(self, content: Any = None) -> None:
        """Answer `content`, or the last question again for None, and show the answer."""
        printer = Printer()
        self._attempt = 0 if content is not None else self._attempt + 1
        options = self.settings.of_attempt(self._attempt)
        ask = self.dialogue.retry if content is None else partial(self.dialogue.ask, content)
        try:
            reply = self._listen(ask, printer, options)
        except KeyboardInterrupt:
            if not self.lines.is_terminal:
                raise
            self.tell("stopped before the answer; the question is not part of the conversation.")
            return
        finally:
            printer.close()
        self.last, self.pending = reply, self.pending if reply.empty else []
        self.totals.add(reply)
        if self.settings.as_json:
            echo_json(self._record(reply))
            return
        for call in reply.tool_calls:
            echo(f"{call.name}({call.arguments})")
        if reply.empty:
            echo()
            self.tell("the model said nothing; the question is not part of the conversation.")
        elif reply.stopped_by == "interrupted":
            self.tell("stopped; what there is of the answer is part of the conversation.")

    @contextmanager
    def _opening(self, name: str) -> Iterator[None]:
        """Show a line while images are opened."""
        with waiting() as line:
            line.say(f"opening {name}")
            self._say = line.say
            try:
                yield
            finally:
                self._say = _to_nobody

    def _open_pages(self, source: Any) -> list[Any]:
        def progress(done: int, total: int) -> None:
            self._say(f"rendering page {done} of {total}")

        return load_pages(source, limits=self.settings.pdf_limits, progress=progress)

    def _listen(self, ask: Callable[..., Reply], printer: Printer, options: dict[str, Any]) -> Reply:
        with waiting() as line:

            def show(piece: Piece) -> None:
                line.stop()
                if not self.settings.as_json:
                    printer.hear(piece)

            def progress(done: int, total: int) -> None:
                line.say(f"reading {total} tokens: {done * 100 // max(total, 1)} %")

            if not self.lines.is_terminal:
                return ask(on_event=show, progress=progress, **options)
            with stoppable() as stop:
                return ask(on_event=show, progress=progress, stop=stop, **options)

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            return self._run_command(self, name, rest.strip())
        text = line.strip()
        self.answer([*self.pending, {"type": "text", "text": text}] if self.pending else text)

    def _prompt(self) -> str:
        number = sum(len(attachment.images) for attachment in self.pending)
        return f"[{number} image{'s' if number > 1 else ''}] > " if number else "> "

    def _record(self, reply: Reply) -> dict[str, Any]:
        return answer_record(
            reply,
            self.settings.name,
            tokens={"reused": reply.reused, "computed": reply.computed},
            more={"images_encoded": reply.images_encoded},
        )


def _to_nobody(_: str) -> None:
    """Discard the text."""
