"""Assistant, load(): a model with its processor for questions about images. Conversations: dialogue.py."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import copy_context
from functools import partial
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vitrail.arguments import check_methods, checked, checked_except
from vitrail.auto import load as open_model
from vitrail.dialogue import Dialogue, Raw
from vitrail.errors import ImageError, InputError
from vitrail.files.opening import home_path
from vitrail.images.fetch import is_url
from vitrail.images.pdf import file_holds_pdf
from vitrail.images.request import image_request
from vitrail.reader import embedded_path
from vitrail.responses.events import Piece, TextDelta
from vitrail.responses.reply import Reply

if TYPE_CHECKING:
    from vitrail.reader.files import FileReading


@checked
def load(
    model: str | PathLike[str] | None = None,
    *,
    dtype: Any = None,
    device: Any = "auto",
    adapter: str | Path | None = None,
    quantization: Any = None,
    **options: Any,
) -> "Assistant":
    """Load a checkpoint as an Assistant: `ask`, `stream`, `chat`, `read`.

    Args:
        model: a folder or a hub name; None: the embedded reader.
        dtype: dtype of computation; None: the checkpoint's, float32 for the embedded reader.
        device: "auto" (an accelerator if there is one), a device, or a device map.
        adapter: a LoRA adapter for the model, a folder or a hub name.
        quantization: quantise while loading: "q4", "q8", "nf4", "fp4", "int8", or a configuration of one.
        options: of from_pretrained: format, revision, token, cache_dir, local_files_only, tokenizer_mode, …

    Raises:
        CheckpointError: files that are missing, damaged or do not fit. InputError: an argument that cannot be used.
        OutOfMemory: weights that need more memory than is free.
    """
    if not isinstance(model, (str, PathLike, type(None))):
        raise InputError(f"a model is a folder or a name on the hub; got {type(model).__name__}.")
    name = embedded_path() if model is None else model
    dtype = dtype or ("float32" if model is None else "auto")
    if quantization is not None:
        options["quantization_config"] = _packing(quantization)
    processor, network = open_model(name, dtype=dtype, device_map=device, **options)
    if adapter is not None:
        network.load_adapter(adapter)
    return Assistant(network, processor)


@checked_except("ask.question", "stream.question", "chat.messages")
class Assistant:
    """A model with its processor, for questions about images.

    An image is a path, a URL, bytes, a PIL image, an array or a tensor; a PDF counts as its pages.

    Args:
        model: a loaded model of Vitrail.
        processor: a PixtralProcessor, or the tokenizer of a text-only checkpoint.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        check_methods("model", model, "step", "embed")
        check_methods("processor", processor, "apply_chat_template", "decode")
        self.model, self.processor = model, processor

    def ask(
        self,
        images: Any,
        question: str,
        *,
        system: str | None = None,
        tools: Sequence[Any] | None = None,
        max_image_tokens: int | None = None,
        **options: Any,
    ) -> Reply:
        """Answer one question.

        Args:
            images: an image, a list of images, or None.
            question: the text after the images.
            system: a system prompt.
            tools: tools for the model; see docs/tools.md. The reply holds their calls; none is run.
            max_image_tokens: limit of tokens per image.
            options: of `Dialogue.ask` (on_event, stop, progress) and of generate().
        """
        dialogue = self.chat(
            system=system, max_image_tokens=max_image_tokens, **({} if tools is None else {"tools": tools})
        )
        return dialogue.ask(content_of(images, question), **options)

    def stream(
        self,
        images: Any,
        question: str,
        *,
        on_event: Callable[[Piece], None] | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> "ReplyStream":
        """Return an iterator over the text of the answer during generation. Arguments as `ask`.

        The iteration raises the errors of `ask`. Closing the iterator ends the answer.
        """
        return ReplyStream(partial(self.ask, images, question, **options), on_event, stop, progress)

    def chat(
        self,
        messages: Sequence[Raw] = (),
        *,
        system: str | None = None,
        max_image_tokens: int | None = None,
        **options: Any,
    ) -> Dialogue:
        """Begin a conversation, in which no position and no image is computed twice.

        Args:
            messages: the messages so far, in the form of apply_chat_template.
            system: a system prompt.
            max_image_tokens: limit of tokens per image.
            options: of `Dialogue`: pages, tools, format, chat_template.
        """
        dialogue = Dialogue(
            self.model, self.processor, messages, max_image_tokens=max_image_tokens, **options
        )
        if system is not None:
            dialogue.system = system
        return dialogue

    def read(self, files: str | Path | Sequence[str | Path]) -> "Iterator[tuple[str, FileReading]]":
        """Read the printed text of many files in batches, as `vitrail read` does.

        The embedded reader is trained for it; other models get a prompt for transcription.

        Args:
            files: images, PDFs, URLs, folders (searched recursively) and patterns such as "scans/*.png".

        Returns:
            An iterator of (name, reading); the reading of an unreadable file has an `error`.

        Raises:
            InputError: a name or pattern without files.
        """
        from vitrail.reader.files import find_images, open_file, read_files
        from vitrail.reader.reading import BatchReader

        with image_request() as request:
            if not request.policy.allow_files:
                raise ImageError("Local files are not opened here; ask() takes images.")
        if not hasattr(self.processor, "image_processor"):
            raise InputError("this checkpoint reads text only; it cannot read files of images")
        given = [files] if isinstance(files, (str, PathLike)) else files
        if not isinstance(given, Sequence) or not all(isinstance(name, (str, PathLike)) for name in given):
            raise InputError(
                f"files are names: a path, a URL or a list of them; got {type(files).__name__}. ask() takes images."
            )
        names = find_images([str(name) for name in given])
        context = copy_context()  # files are opened later, under the caller's policy
        readings = read_files(
            BatchReader.of(self.model, self.processor), names, lambda name: context.run(open_file, name)
        )
        return zip(names, readings, strict=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__} of {self.model.config.name_or_path!r})"


class ReplyStream(Iterator[str]):
    """Iterator over the text of an answer, generated in another thread.

    Attributes:
        reply: the whole answer after the end of the iteration; None before.
    """

    def __init__(
        self,
        ask: Callable[..., Reply],
        on_event: Callable[[Piece], None] | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.reply: Reply | None = None
        context = copy_context()  # of the caller; the first step may run in another context
        self._pieces = self._run(partial(context.run, ask), on_event, stop, progress)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer early."""
        self._pieces.close()

    def _run(
        self,
        ask: Callable[..., Reply],
        on_event: Callable[[Piece], None] | None,
        stop: Callable[[], bool] | None,
        progress: Callable[[int, int], None] | None,
    ) -> Generator[str, None, None]:
        events: SimpleQueue[Any] = SimpleQueue()
        closed = threading.Event()

        def ended() -> bool:
            return closed.is_set() or (stop is not None and stop())

        def proceed(done: int, total: int) -> None:
            if closed.is_set():
                raise GeneratorExit  # closed before the first id
            if progress is not None:
                progress(done, total)

        def work() -> None:
            try:
                events.put(ask(on_event=events.put, stop=ended, progress=proceed))
            except BaseException as error:  # raised in the iterating thread
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while not isinstance(event := events.get(), (Reply, BaseException)):
                if on_event is not None:
                    on_event(event)
                if isinstance(event, TextDelta):
                    yield event.text
            if isinstance(event, BaseException):
                raise event
            self.reply = event
        finally:
            closed.set()
            thread.join()


def content_of(images: Any, question: str) -> list[Raw]:
    """Return the content of a user's message: images, then the question."""
    if not isinstance(question, str):
        raise InputError(
            f"a question is a text, got {type(question).__name__}; images come first: ask(images, question)"
        )
    return [*_image_parts(images), {"type": "text", "text": question}]


def file_part(name: "str | PathLike[str]") -> Raw:
    """Return the content part of an image or a PDF named by path or URL."""
    name = str(name)
    if is_url(name) or name[:5].lower() == "data:":
        return {"type": "file", "url": name}  # the type, image or PDF, is found after download
    path = home_path(name)
    return {"type": "file" if file_holds_pdf(path) else "image", "path": str(path.absolute())}


def _image_parts(images: Any) -> list[Raw]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [part for image in images for part in _image_parts(image)]
    return [file_part(images) if isinstance(images, (str, PathLike)) else {"type": "image", "image": images}]


def _packing(quantization: Any) -> Any:
    """Return the configuration of a quantisation's name, or the given configuration."""
    from vitrail.quant.formats import FORMATS

    if not isinstance(quantization, str):
        return quantization
    known = {name: format.configs()[name] for name, format in FORMATS.items() if format.quantizes}
    if quantization not in known:
        raise InputError(
            f"quantization {quantization!r} is not known; one of {', '.join(known)} was expected."
        )
    return known[quantization]
