"""mark_own_texts: mark a parsed template's own texts (literals and roles in its output, not those in comparisons)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes

OWN_TEXT = "_own_text"
"""The filter that such an expression is put through, with one of the ways below as its argument."""
MASK = "mask"  # own text: mask it
MASK_TOKENS = "mask tokens"  # own format pattern: mask whole control tokens, so that its fields stay
TAG = "tag"  # own text that may still be compared: make it an OwnText
UNTAG = "untag"  # any value: mask it if it is an OwnText
_NO_MACROS = frozenset({"raise_exception", "strftime_now", "range"})
# Filters and methods with arguments that reach the output → index of the first such argument.
_WRITTEN = {"default": 0, "d": 0, "join": 0, "format": 0, "replace": 1, "get": 1}
_Change = Callable[[Any], Any]


class OwnText(str):
    """A text of the template's own before it is output."""


def mark_own_texts(environment: jinja2.Environment, tree: nodes.Template, *, early: bool) -> None:
    """Wrap the own texts of `tree` in the filter OWN_TEXT, in place.

    Args:
        environment: The environment of the filters.
        tree: The parsed template.
        early: Mask literals where they are stored in variables, containers and arguments, so that concatenations keep
            the mask; otherwise tag them there and mask them in the output, so that comparisons still work.
    """
    _Marking(environment, early).statement(tree)


class _Marking:
    def __init__(self, environment: jinja2.Environment, early: bool) -> None:
        self.environment = environment
        self.stored: _Change = self.written if early else self.tagged

    def statement(self, node: nodes.Node) -> None:
        """Mark the output and the stored values of a statement, and the statements inside it."""
        if isinstance(node, nodes.Output):
            node.nodes = [self.written(part) for part in node.nodes]
            return
        if isinstance(node, (nodes.Assign, nodes.ExprStmt)):
            node.node = self.stored(node.node)
        elif isinstance(node, nodes.Macro):
            node.defaults = [self.stored(value) for value in node.defaults]
        elif isinstance(node, nodes.With):
            node.values = [self.stored(value) for value in node.values]
        elif isinstance(node, nodes.For):
            node.iter = self.stored(node.iter)
        elif isinstance(node, nodes.CallBlock):
            self._call(node.call)
        for child in node.iter_child_nodes():
            if not isinstance(child, nodes.Expr):
                self.statement(child)

    def tagged(self, node: Any) -> Any:
        """Return a stored expression with its literals tagged."""
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            return self._filter(node, TAG)
        self._inside(node, self.tagged)
        return node

    def written(self, node: Any, way: str = MASK) -> Any:
        """Return an output expression with its literals masked."""
        if isinstance(node, nodes.TemplateData):
            return self._filter(nodes.Const(node.data, lineno=node.lineno), way)
        if isinstance(node, nodes.Const):
            return self._filter(node, way) if isinstance(node.value, str) else node
        if isinstance(node, (nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Filter)):
            self._inside(node, self.written)
            return self._filter(node, UNTAG)
        if isinstance(node, nodes.Mod):
            node.left, node.right = self.written(node.left, MASK_TOKENS), self.written(node.right)
        elif isinstance(node, (nodes.Add, nodes.Mul, nodes.And, nodes.Or)):
            node.left, node.right = self.written(node.left), self.written(node.right)
        elif isinstance(node, nodes.Concat):
            node.nodes = [self.written(part) for part in node.nodes]
        else:
            self._inside(node, self.written)
        return node

    def _inside(self, node: Any, change: _Change) -> None:
        """Apply `change` to the parts of an expression that can be its value or part of it."""
        if isinstance(node, nodes.CondExpr):
            node.expr1, node.expr2 = change(node.expr1), change(node.expr2)
        elif isinstance(node, (nodes.List, nodes.Tuple)):
            node.items = [change(item) for item in node.items]
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.value = change(pair.value)
        elif isinstance(node, (nodes.Getattr, nodes.Getitem)) and not isinstance(node.node, nodes.Name):
            node.node = change(node.node)
        elif isinstance(node, nodes.Filter):
            if node.node is not None and not isinstance(node.node, nodes.Name):
                node.node = self.written(node.node, MASK_TOKENS if node.name == "format" else MASK)
            self._arguments(node, _WRITTEN.get(node.name), self.written)
        elif isinstance(node, nodes.Call):
            self._call(node)

    def _call(self, node: nodes.Call) -> None:
        if isinstance(node.node, nodes.Getattr):
            owner, method = node.node.node, node.node.attr
            if isinstance(owner, nodes.Const):
                node.node.node = self.written(owner, MASK_TOKENS if method.startswith("format") else MASK)
            self._arguments(node, _WRITTEN.get(method), self.written)
        elif not (isinstance(node.node, nodes.Name) and node.node.name in _NO_MACROS):
            self._arguments(node, 0, self.stored)

    def _arguments(self, node: nodes.Call | nodes.Filter, first: int | None, change: _Change) -> None:
        if first is None:
            return
        node.args = [change(arg) if place >= first else arg for place, arg in enumerate(node.args)]
        for keyword in node.kwargs:
            keyword.value = change(keyword.value)

    def _filter(self, node: nodes.Expr, way: str) -> nodes.Filter:
        arguments: list[nodes.Expr] = [nodes.Const(way, lineno=node.lineno)]
        made = nodes.Filter(node, OWN_TEXT, arguments, [], None, None, lineno=node.lineno)
        made.set_environment(self.environment)
        return made
