"""run: render a TemplateRequest in Jinja's sandbox within a budget, with user text masked.

Imported by the process of template_worker.py; elsewhere for Vitrail's own templates only (template.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import jinja2
from jinja2 import filters, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from vitrail.errors import PromptError
from vitrail.files.formatting import first_line
from vitrail.prompts.control_token_mask import ControlTokenMask, map_strings
from vitrail.prompts.rendered_prompt import Place
from vitrail.prompts.template_budget import Budget, indent_width
from vitrail.prompts.template_marking import MASK_TOKENS, OWN_TEXT, TAG, UNTAG, OwnText, mark_own_texts
from vitrail.prompts.template_request import TemplateRequest
from vitrail.prompts.template_view import CONTINUE_HERE, View

_FILTERS = frozenset(filters.FILTERS) - {
    "random"
}  # without "random", so that prompts are deterministic; `_own_filters` replaces others
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)  # usual errors of faulty templates; untrusted ones can raise any other


def run(request: TemplateRequest) -> tuple[str, int, list[Place]]:
    """Render a request with the user's characters of control tokens masked.

    The unmasked text always equals that of plain Jinja: if a rendering of masked texts differs, because the template
    compares, converts or changes them, a weaker mask is tried, then a mask of the template's own texts.

    Returns:
        The masked text, the first stand-in of its mask, and the places of the assistant's text ([] without
        `find_answers`).

    Raises:
        PromptError: Any failure of the template.
    """
    compiled = _compile(request.source)
    _check_variables(compiled, request)
    typed: set[str] = set()  # the characters of users' texts
    keys: set[str] = set()  # keys and variables, often compared: only whole control tokens are masked

    def seen(text: str) -> str:
        typed.update(text)
        return str.__str__(text)

    def seen_key(text: str) -> str:
        keys.add(text.casefold())
        return str.__str__(text)

    plain = _once(compiled, request, seen, seen_key)
    answers = find_answers(compiled, request, plain) if request.find_answers else []
    mask = ControlTokenMask.over(request.controls, request.source, plain)
    if not mask.controls:
        return plain, mask.base, answers
    for masked in _masked_texts(compiled, request, mask, typed, keys):
        if mask.unmask(masked) == plain:
            return masked, mask.base, answers
    raise PromptError(
        "the chat template changes and compares the texts of messages together with its own control tokens, so that "
        "which of them a user typed cannot be told; use a built-in prompt format (format=)"
    )


def _masked_texts(
    compiled: _Compiled, request: TemplateRequest, mask: ControlTokenMask, typed: set[str], keys: set[str]
) -> Iterator[str]:
    """Yield renderings with user text masked, or with all but the template's own text masked; the strictest first.

    The first one masks every visible user character: a template can turn other characters into those of control
    tokens ("img"|upper, "٣"|int).
    """

    def own(early: bool) -> str:
        return mask.swap(_once(compiled.marked(early), request, mask.keep, mask.keep, mask))

    every = mask.widened(typed)
    with suppress(PromptError):  # raised by templates that check the text
        masked = every.narrowed(_once(compiled, request, every.mask_all, mask.mask_tokens), mask)
        found = mask.found(masked)
        tokens = {token.casefold() for _, token in found}
        if any(key in token for key in keys if key for token in tokens):  # as "IMG" in "[" ~ key ~ "]"
            with suppress(PromptError):
                marked = own(True)
                if mask.found(marked) != found and mask.unmask(marked) == mask.unmask(masked):
                    yield marked
        yield masked
    for early in (True, False):
        with suppress(PromptError):
            yield own(early)
    with suppress(PromptError):
        yield _once(compiled, request, mask.mask_user, mask.mask_tokens)


def _once(
    compiled: _Compiled,
    request: TemplateRequest,
    text: Callable[[str], str],
    key: Callable[[str], str],
    own: ControlTokenMask | None = None,
) -> str:
    """Render once. text, key: applied to user texts and keys; own: mask of the template's texts, compiled as marked."""
    view = View(request.source, text, key, request.continue_final_message)
    shown = view.messages(request.messages)
    if own is not None:
        for message in shown:
            message["role"] = OwnText(message["role"])
    special: Any = (
        request.special_tokens if own is None else map_strings(request.special_tokens, own.mask_all, str)
    )
    context = {
        **special,
        **{name: map_strings(value, key, key) for name, value in request.variables.items()},
        "messages": shown,
        "tools": None if request.tools is None else [map_strings(tool, text, key) for tool in request.tools],
        "documents": None
        if request.documents is None
        else [map_strings(d, text, key) for d in request.documents],
        "add_generation_prompt": request.add_generation_prompt,
    }
    rendered = compiled.render(context, request.moment, own)
    return _cut_at_mark(rendered) if request.continue_final_message else rendered


def find_answers(compiled: _Compiled, request: TemplateRequest, plain: str) -> list[Place]:
    """Find the places of `{% generation %}` bodies in the prompt, by a rendering with a mark at both ends of each.

    Args:
        compiled: The compiled template.
        request: The request.
        plain: Its rendering without marks.

    Raises:
        PromptError: The template changes the marked text, so that marks are lost or the prompt differs.
    """
    free = (chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in plain + request.source)
    marks = "".join(islice(free, 2))
    token = compiled.environment.marks.set(marks)
    try:
        marked = _once(compiled, request, str.__str__, str.__str__) if len(marks) == 2 else ""
    finally:
        compiled.environment.marks.reset(token)
    places: list[Place] = []
    opened: list[int] = []
    pieces = re.split(f"([{marks}])", marked) if marks else []
    at = 0
    for piece in pieces:
        if piece == marks[0]:
            opened.append(at)
        elif piece != marks[-1]:
            at += len(piece)
        elif opened and (start := opened.pop()) < at:
            places.append((start, at))
    if opened or "".join(piece for piece in pieces if piece not in marks) != plain:
        raise PromptError(
            "return_assistant_tokens_mask: the chat template changes what stands between its generation tags, so that its "
            "place in the prompt cannot be told; use a template that writes it as it is"
        )
    return sorted(places)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with loop iterations, calls and texts charged to the rendering's budget."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        extensions = (_Generation, loopcontrols)
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        self.budget: ContextVar[Budget] = ContextVar("budget")
        self.moment: ContextVar[datetime] = ContextVar("moment")
        self.marks: ContextVar[str] = ContextVar("marks", default="")  # before and behind an answer
        self.own: ContextVar[ControlTokenMask | None] = ContextVar("own", default=None)
        self.filters = {name: self._weighed(filters.FILTERS[name]) for name in _FILTERS} | self._own_filters()
        for name in ("lipsum", "range"):
            del self.globals[name]
        self.globals.update(
            range=lambda *bounds: self.budget.get().range(*bounds),
            raise_exception=_refuse,
            strftime_now=lambda pattern: self.moment.get().strftime(pattern),
        )
        self.concat = lambda parts: self.budget.get().joined(parts)  # type: ignore[method-assign]

    def _own_filters(self) -> dict[str, Callable[..., Any]]:
        @jinja2.pass_context
        def counted(_: Any, items: Any) -> Any:
            return self.budget.get().counted(items)

        @jinja2.pass_context
        def joined(_: Any, parts: Any, d: Any = "", attribute: Any = None) -> str:
            if attribute is not None:
                parts = map(filters.make_attrgetter(self, attribute), parts)
            return self.budget.get().joined(parts, str(d))

        @jinja2.pass_context
        def replaced(_: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
            return self.budget.get().replaced(str(text), str(old), str(new), -1 if count is None else count)

        @jinja2.pass_context
        def indented(_: Any, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
            lines = str(text).count("\n") + 1
            width = indent_width(width)
            self.budget.get().reserve(lines * (width if isinstance(width, int) else len(str(width))))
            return filters.do_indent(str(text), width, first, blank)

        def centered(text: Any, width: Any = 80) -> str:
            return filters.do_center(str(text), indent_width(width))

        @jinja2.pass_context
        def tojson(_: Any, value: Any, **options: Any) -> Any:
            return self.budget.get().weigh(_to_json(value, **options))

        @jinja2.pass_context  # prevents constant folding by Jinja
        def marked(_: Any, value: Any, way: str) -> Any:
            own = self.own.get()
            if own is None or way == TAG:
                return value if own is None else OwnText(value)
            if way == UNTAG and type(value) is not OwnText:
                return value
            return own.mask_tokens(value) if way == MASK_TOKENS else own.mask_all(value)

        own: dict[str, Callable[..., Any]] = {
            OWN_TEXT: marked,
            "center": centered,
            "join": joined,
            "replace": replaced,
            "indent": indented,
            "tojson": tojson,
            "_counted": counted,
        }
        return own

    def _weighed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def weighed(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget.get(None)  # None while Jinja folds constants of the template
            return plain(*args, **kwargs) if budget is None else budget.weigh(plain(*args, **kwargs))

        # An attribute marks filters that take Jinja's context or environment.
        weighed.__dict__.update(getattr(plain, "__dict__", {}))
        return weighed

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounding(self).visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call as the sandbox does, within the budget; Jinja's parameter names leave all keywords to the template."""
        budget = __self.budget.get()
        budget.call(__obj, args)
        return budget.weigh(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operator within the budget."""
        compute = super().call_binop
        return self.budget.get().operate(
            operator, left, right, lambda: compute(context, operator, left, right)
        )


class _Bounding(NodeTransformer):
    """Rewrites a parsed template so that loops and the operator ~ are charged to the budget."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self.environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = self._filter("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filter("join", nodes.List(node.nodes, lineno=node.lineno))

    def _filter(self, name: str, node: nodes.Node) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self.environment)
        return made


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, the mark of assistant text in some templates; the text does not change.

    As in transformers, the tags are a scope for names that are set between them.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Parse the statements between the tags, and put the rendering's marks around them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ends = [nodes.Output([self.call_method(name)]).set_lineno(line) for name in ("opening", "closing")]
        return [nodes.Scope([ends[0], *body, ends[1]]).set_lineno(line)]

    def opening(self) -> str:
        """Return the mark before an answer; "" in a rendering without marks."""
        return self._marks()[:1]

    def closing(self) -> str:
        """Return the mark behind an answer; "" in a rendering without marks."""
        return self._marks()[1:]

    def _marks(self) -> str:
        environment: Any = self.environment
        found: str = environment.marks.get()
        return found


class _Compiled:
    """A compiled template, and the names that it reads. mark: changes its syntax tree before compilation."""

    def __init__(
        self, source: str, mark: Callable[[jinja2.Environment, nodes.Template], None] | None = None
    ) -> None:
        self.source = source
        self.environment = _Environment()
        try:
            tree = self.environment.parse(source)
            self.reads = meta.find_undeclared_variables(tree)
            if mark is not None:
                mark(self.environment, tree)
            self.template = self.environment.from_string(tree)
        except (PromptError, MemoryError):
            raise
        except Exception as error:
            raise PromptError(f"the chat template is not Jinja that may run here: {_words(error)}") from error
        self._marked: dict[bool, _Compiled] = {}

    def marked(self, early: bool) -> _Compiled:
        """Return the template compiled with its own texts marked (template_marking.py)."""
        if early not in self._marked:
            self._marked[early] = _Compiled(self.source, lambda *parsed: mark_own_texts(*parsed, early=early))
        return self._marked[early]

    def render(
        self, context: Mapping[str, Any], moment: datetime, own: ControlTokenMask | None = None
    ) -> str:
        """Render the template. Raises PromptError for any failure."""
        budget = Budget()
        environment = self.environment
        tokens = (environment.budget.set(budget), environment.moment.set(moment), environment.own.set(own))
        try:
            return budget.joined(self.template.generate(**context))
        except (PromptError, MemoryError):
            raise
        except Exception as error:
            raise PromptError(f"the chat template failed: {_words(error)}") from error
        finally:
            environment.budget.reset(tokens[0])
            environment.moment.reset(tokens[1])
            environment.own.reset(tokens[2])


def _words(error: Exception) -> str:
    """Return the first line of a template's error, with the class name for unusual errors."""
    said = first_line(error)
    return said if isinstance(error, _TEMPLATE_FAULTS) else f"{type(error).__name__}: {said}"


def _cut_at_mark(rendered: str) -> str:
    """Return the prompt up to the end of the last message's text, trimmed if the template trims texts."""
    before, mark, after = rendered.rpartition(CONTINUE_HERE)
    if not mark:
        raise PromptError("continue_final_message: the chat template does not show the last message's text")
    return before if after.startswith(" ") else before.rstrip()


def _check_variables(compiled: _Compiled, request: TemplateRequest) -> None:
    more = {"tools": request.tools, "documents": request.documents}
    given = [*request.variables, *(name for name, value in more.items() if value)]
    unread = sorted(name for name in given if name not in compiled.reads)
    if unread:
        raise PromptError(
            f"{', '.join(unread)}: neither Vitrail nor this checkpoint's chat template reads such an argument"
        )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without HTML escapes; private-use characters stay unescaped, as possible stand-ins of user text."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    return re.sub(r"[^\x00-\x7f\U000f0000-\U0010ffff]", lambda match: json.dumps(match.group())[1:-1], text)


def _refuse(message: Any) -> None:
    raise PromptError(f"the chat template refuses this conversation: {message}")


@lru_cache(maxsize=16)
def _compile(source: str) -> _Compiled:
    return _Compiled(source)
