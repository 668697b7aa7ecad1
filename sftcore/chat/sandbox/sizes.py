"""What in a Jinja template can be larger than what it is given, read off its source."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import TemplateSyntaxError, nodes

_KEEPING_METHODS = frozenset(
    ["strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "lower", "upper",
     "title", "capitalize", "startswith", "endswith", "removeprefix", "removesuffix", "find", "count", "index",
     "items", "keys", "values", "isdigit"]
)  # fmt: skip
_KEEPING_FILTERS = frozenset(
    ["trim", "lower", "upper", "title", "capitalize", "string", "first", "last", "length", "count", "list", "items",
     "dictsort", "tojson", "safe", "int", "float", "abs", "escape", "e", "selectattr", "rejectattr", "reverse"]
)  # fmt: skip
"""They make no more than a few times what they are given."""
LOOP_NUMBERS = frozenset({"index", "index0", "revindex", "revindex0", "length", "depth", "depth0", "first", "last"})


class Sizes:
    """Tells values that are as large as the conversation at most, or as the source itself, from those that may grow.

    A name is *given* where every value that the template ever puts there is: `{% set text = message.content %}` gives
    `text` no way to grow, `{% set text = text + text %}` does.

    Raises:
        TemplateSyntaxError: the template uses blocks, or a macro's unnamed arguments, which no chat template needs.
    """

    def __init__(self, template: nodes.Template) -> None:
        for kind in (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport):
            for node in template.find_all(kind):
                raise TemplateSyntaxError(f"{kind.__name__.lower()} is not there for chat templates", node.lineno)
        names = list(template.find_all(nodes.Name))
        for name in names:
            if name.name in ("varargs", "kwargs", "self"):
                raise TemplateSyntaxError(f'the name "{name.name}" is not there for chat templates', name.lineno)
        self._stored = {name.name for name in names if name.ctx != "load"}
        self._grown: set[str] = set()
        puts = [*_puts(template)]
        while True:
            more = {
                name.name
                for target, value in puts
                if value is None or not self.is_given(value)
                for name in _names(target)
            } - self._grown
            if not more:
                return
            self._grown |= more

    def is_given(self, node: nodes.Node) -> bool:
        """Whether the value is no larger than the conversation or the source."""
        if isinstance(node, (nodes.Const, nodes.TemplateData, nodes.Compare, nodes.Not, nodes.Test)):
            return True
        if isinstance(node, nodes.Name):
            return node.name not in self._grown
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            return self.is_given(node.node)
        if isinstance(node, nodes.CondExpr):
            return self.is_given(node.expr1) and (node.expr2 is None or self.is_given(node.expr2))
        if isinstance(node, (nodes.And, nodes.Or)):
            return self.is_given(node.left) and self.is_given(node.right)
        if isinstance(node, nodes.Call):
            inner = node.node
            return isinstance(inner, nodes.Getattr) and inner.attr in _KEEPING_METHODS and self.is_given(inner.node)
        if isinstance(node, nodes.Filter):
            if node.name in ("default", "d"):
                return all(map(self.is_given, [*([node.node] if node.node else []), *node.args]))
            return node.name in _KEEPING_FILTERS and node.node is not None and self.is_given(node.node)
        return False

    def is_number(self, node: nodes.Node) -> bool:
        """Whether the value is surely a number, such as `loop.index0`."""
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
            return node.node.name == "loop" and "loop" not in self._stored and node.attr in LOOP_NUMBERS
        if isinstance(node, nodes.Filter):
            return node.name in ("length", "count")
        return isinstance(node, nodes.Const) and isinstance(node.value, int)


def _puts(template: nodes.Template) -> Iterator[tuple[nodes.Node, nodes.Node | None]]:
    """Every place where a value gets a name, with the value; None where that is not known."""
    for loop in template.find_all(nodes.For):
        yield loop.target, None if loop.recursive else loop.iter
    for assignment in template.find_all(nodes.Assign):
        yield assignment.target, assignment.node
    for block in template.find_all(nodes.AssignBlock):
        yield block.target, None
    for macro in template.find_all(nodes.Macro):
        yield from ((name, None) for name in (*macro.args, nodes.Name(macro.name, "store")))
    for call in template.find_all(nodes.CallBlock):
        yield from ((name, None) for name in call.args)
    for scope in template.find_all(nodes.With):
        yield from zip(scope.targets, scope.values, strict=True)


def _names(target: nodes.Node) -> Iterator[nodes.Name | nodes.NSRef]:
    if isinstance(target, (nodes.Name, nodes.NSRef)):
        yield target
        return
    yield from target.find_all(nodes.Name)
    yield from target.find_all(nodes.NSRef)


def leaves(node: nodes.Expr) -> list[nodes.Expr]:
    """The operands of a chain of additions."""
    found, left = [], [node]
    while left:
        one = left.pop()
        if isinstance(one, nodes.Add):
            left += [one.left, one.right]
        else:
            found.append(one)
    return found
