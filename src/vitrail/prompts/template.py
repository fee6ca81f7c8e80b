"""Messages → prompt through a checkpoint's Jinja template, sandboxed and bounded. No files, no ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import filters, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from vitrail.errors import PromptError, UnsupportedError
from vitrail.files.formatting import first_line
from vitrail.prompts.control_token_mask import ControlTokenMask, map_strings
from vitrail.prompts.messages import Message
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.prompts.template_budget import Budget, indent_width
from vitrail.prompts.template_view import CONTINUE_HERE, View

MAX_TEMPLATE = 1 << 20  # characters of a template's source; published ones have less than 20,000
# Jinja's own filters that cannot make much out of little; the rest is missing or in `_own_filters`.
_FILTERS = frozenset(
    {"abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape"}
    | {
        "groupby",
        "int",
        "items",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
    }
    | {
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "sum",
        "title",
        "trim",
        "truncate",
    }
    | {"unique", "upper", "wordcount"}
)
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    controls: Iterable[str] = (),
    special_tokens: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> RenderedPrompt:
    """Render one conversation. The result keeps which control tokens the template wrote.

    template: Jinja source, with the names and filters that transformers gives it.
    controls: the tokenizer's control tokens; typed by a user they stay text (control_token_mask.py).
    special_tokens: what the template may name (bos_token, …); variables: what else the caller hands to it.
    Raises PromptError if the template fails, refuses the conversation, does not read a given variable or
    works too long.
    """
    if continue_final_message and add_generation_prompt:
        raise PromptError(
            "add_generation_prompt opens a new turn, continue_final_message goes on with the last; choose one"
        )
    compiled = _compile(template)
    _check_variables(compiled, variables or {}, tools, documents)
    moment = datetime.now()
    no_mask = ControlTokenMask.over((), template)

    def once(text: Callable[[str], str], key: Callable[[str], str]) -> str:
        view = View(compiled.source, text, key, continue_final_message)
        shown = view.messages(messages)
        context = {
            **(special_tokens or {}),
            **{name: map_strings(value, key, key) for name, value in (variables or {}).items()},
            "messages": shown,
            "tools": None if tools is None else [map_strings(_schema(tool), text, key) for tool in tools],
            "documents": None if documents is None else [map_strings(dict(d), text, key) for d in documents],
            "add_generation_prompt": add_generation_prompt,
        }
        rendered = compiled.render(context, moment)
        return _cut_at_mark(rendered) if continue_final_message else rendered

    plain = once(no_mask.unmask, no_mask.unmask)
    mask = ControlTokenMask.over(controls, template, plain)
    if not mask.controls:
        return mask.rendered(plain)
    try:
        masked = once(mask.mask_all, mask.mask_tokens)
    except PromptError:
        masked = ""  # the template looks at the text itself, and refuses to go on without it
    if mask.unmask(masked) != plain:
        # The template acts on the text itself (splits, compares, escapes): mask only what could be a control token.
        masked = once(mask.mask_user, mask.mask_tokens)
    return mask.rendered(masked)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every loop turn, call and text takes from the rendering's budget."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        extensions = (_Generation, loopcontrols)
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
        self.budget: ContextVar[Budget] = ContextVar("budget")
        self.moment: ContextVar[datetime] = ContextVar("moment")
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

        @jinja2.pass_context
        def tojson(_: Any, value: Any, **options: Any) -> Any:
            return self.budget.get().weigh(_to_json(value, **options))

        own: dict[str, Callable[..., Any]] = {
            "join": joined,
            "replace": replaced,
            "indent": indented,
            "tojson": tojson,
            "_counted": counted,
        }
        return own

    def _weighed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def weighed(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget.get(None)  # None while Jinja folds a constant of the template itself
            return plain(*args, **kwargs) if budget is None else budget.weigh(plain(*args, **kwargs))

        # Jinja marks filters that want its context or environment by an attribute.
        weighed.__dict__.update(getattr(plain, "__dict__", {}))
        return weighed

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounding(self).visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As the sandbox, within the budget. The odd names are Jinja's: keywords belong to the template."""
        budget = __self.budget.get()
        budget.call(__obj, args)
        return budget.weigh(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One of the intercepted operators, within the budget."""
        compute = super().call_binop
        return self.budget.get().operate(
            operator, left, right, lambda: compute(context, operator, left, right)
        )


class _Bounding(NodeTransformer):
    """Rewrites a parsed template so that loops and the operator ~ go through the budget."""

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
    """`{% generation %}…{% endgeneration %}`: some templates mark the assistant's words so; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements between the tags, as they are."""
        next(parser.stream)
        statements: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return statements


class _Compiled:
    """A template that is ready to run, and the names it reads."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.environment = _Environment()
        try:
            self.reads = meta.find_undeclared_variables(self.environment.parse(source))
            self.template = self.environment.from_string(source)
        except (*_TEMPLATE_FAULTS, MemoryError) as error:
            raise PromptError(
                f"the chat template is not Jinja that may run here: {first_line(error)}"
            ) from error

    def render(self, context: Mapping[str, Any], moment: datetime) -> str:
        """The template's text. Raises PromptError for whatever goes wrong in it."""
        budget = Budget()
        tokens = (self.environment.budget.set(budget), self.environment.moment.set(moment))
        try:
            return budget.joined(self.template.generate(**context))
        except PromptError:
            raise
        except _TEMPLATE_FAULTS as error:
            raise PromptError(f"the chat template failed: {first_line(error)}") from error
        finally:
            self.environment.budget.reset(tokens[0])
            self.environment.moment.reset(tokens[1])


def _cut_at_mark(rendered: str) -> str:
    """The prompt up to the end of the last message's text, trimmed if the template trims texts."""
    before, mark, after = rendered.rpartition(CONTINUE_HERE)
    if not mark:
        raise PromptError("continue_final_message: the chat template does not show the last message's text")
    return before if after.startswith(" ") else before.rstrip()


def _schema(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    dump = getattr(tool, "model_dump", None)
    if callable(dump):
        return dict(dump())
    raise UnsupportedError(
        f"tools are described by JSON schemas (dicts); making one from {tool!r} is not supported"
    )


def _check_variables(compiled: _Compiled, variables: Mapping[str, Any], tools: Any, documents: Any) -> None:
    given = [*variables, *(["tools"] if tools else []), *(["documents"] if documents else [])]
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
    """JSON without HTML escapes. Private-use characters always stay, for they may stand for user text."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    return re.sub(r"[^\x00-\x7f\U000f0000-\U0010ffff]", lambda match: json.dumps(match.group())[1:-1], text)


def _refuse(message: Any) -> None:
    raise PromptError(f"the chat template refuses this conversation: {message}")


@lru_cache(maxsize=16)
def _compile(source: str) -> _Compiled:
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE:
        raise PromptError(f"a chat template is a text of at most {MAX_TEMPLATE:,} characters")
    return _Compiled(source)
