"""Which texts of a parsed template are its own output: literals that it writes, not those that it compares with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2 import nodes

OWN_TEXT = "_own_text"
"""The filter that such a text is put through."""
_NO_MACROS = frozenset({"raise_exception", "strftime_now", "range"})
# Arguments of filters and methods that come out again: all of them, or those after the first.
_WRITTEN: dict[str, int] = {"default": 0, "d": 0, "join": 0, "format": 0, "replace": 1, "get": 1}


def mark_own_texts(environment: jinja2.Environment, tree: nodes.Template, *, wide: bool) -> None:
    """Put the literals that `tree` writes through the filter OWN_TEXT, in place.

    wide: those that reach the output by a variable, a macro's argument or a container too.
    """
    _Marking(environment, wide).statement(tree)


class _Marking:
    def __init__(self, environment: jinja2.Environment, wide: bool) -> None:
        self.environment, self.wide = environment, wide

    def statement(self, node: nodes.Node) -> None:
        """Mark what a statement writes, and the statements in it."""
        if isinstance(node, nodes.Output):
            node.nodes = [self.written(part) for part in node.nodes]
            return
        if self.wide:
            if isinstance(node, (nodes.Assign, nodes.ExprStmt)):
                node.node = self.written(node.node)
            elif isinstance(node, nodes.Macro):
                node.defaults = [self.written(value) for value in node.defaults]
            elif isinstance(node, nodes.With):
                node.values = [self.written(value) for value in node.values]
            elif isinstance(node, nodes.For):
                node.iter = self.written(node.iter)
            elif isinstance(node, nodes.CallBlock):
                node.call = self.written(node.call)
        for child in node.iter_child_nodes():
            if not isinstance(child, nodes.Expr):
                self.statement(child)

    def written(self, node: Any) -> Any:
        """The expression whose value is written, with its literals marked."""
        if isinstance(node, nodes.TemplateData) or (
            isinstance(node, nodes.Const) and isinstance(node.value, str)
        ):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            return self._marked(text, node.lineno)
        if isinstance(node, nodes.CondExpr):
            node.expr1, node.expr2 = self.written(node.expr1), self.written(node.expr2)
        elif isinstance(node, nodes.BinExpr):
            node.left, node.right = self.written(node.left), self.written(node.right)
        elif isinstance(node, nodes.Concat):
            node.nodes = self._all(node.nodes)
        elif isinstance(node, (nodes.List, nodes.Tuple)):
            node.items = self._all(node.items)
        elif isinstance(node, nodes.Dict) and self.wide:
            for pair in node.items:
                pair.value = self.written(pair.value)
        elif isinstance(node, (nodes.Getattr, nodes.Getitem)):
            node.node = self.written(node.node)
        elif isinstance(node, nodes.Filter):
            if node.node is not None:
                node.node = self.written(node.node)
            self._arguments(node, _WRITTEN.get(node.name))
        elif isinstance(node, nodes.Call):
            self._call(node)
        return node

    def _call(self, node: nodes.Call) -> None:
        if isinstance(node.node, nodes.Getattr):
            node.node.node = self.written(node.node.node)
            self._arguments(node, _WRITTEN.get(node.node.attr))
        elif self.wide and not (isinstance(node.node, nodes.Name) and node.node.name in _NO_MACROS):
            self._arguments(node, 0)

    def _arguments(self, node: nodes.Call | nodes.Filter, first: int | None) -> None:
        if first is None:
            return
        node.args = [self.written(arg) if place >= first else arg for place, arg in enumerate(node.args)]
        for keyword in node.kwargs:
            keyword.value = self.written(keyword.value)

    def _all(self, expressions: Iterable[Any]) -> list[Any]:
        return [self.written(expression) for expression in expressions]

    def _marked(self, text: str, lineno: int) -> nodes.Filter:
        made = nodes.Filter(nodes.Const(text, lineno=lineno), OWN_TEXT, [], [], None, None, lineno=lineno)
        made.set_environment(self.environment)
        return made
