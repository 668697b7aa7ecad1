"""How a chat template becomes Python code: with a check at each operation whose operands can have grown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sftcore.chat.sandbox.sizes import Sizes, leaves

SEARCHES = frozenset(["strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"])
"""Methods of texts that compare each character with each of their argument, in the worst case."""
MEASURED = frozenset(
    ["format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs", "join", "replace", "translate",
     "encode", "maketrans"]
)  # fmt: skip
"""Methods of texts that can make much of little."""
OF_TEXTS = frozenset(name for name in dir(str) if not name.startswith("_")) - MEASURED
"""Methods that texts may be asked for by name, without the sandbox's own look-up."""


class Generator(CodeGenerator):
    """Compiles those operations to calls of the environment that measure first."""

    _sizes: Sizes

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        self._sizes = Sizes(node)
        super().visit_Template(node, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        if all(self._sizes.is_given(leaf) for leaf in leaves(node)):
            super().visit_Add(node, frame)
        else:
            self._call("plus", (node.left, node.right), frame)

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        if self._sizes.is_number(node.left):
            self.write("(")
            self.visit(node.left, frame)
            self.write(" % ")
            self.visit(node.right, frame)
            self.write(")")
        else:
            super().visit_Mod(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("joined", node.nodes, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        method, named = node.node, node.kwargs or node.dyn_args or node.dyn_kwargs
        if isinstance(method, nodes.Getattr) and method.attr in OF_TEXTS and not named and not forward_caller:
            self._call("of_text", (method.node, *node.args), frame, f"context, {method.attr!r}, ")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._container(node, node.items, frame, super().visit_List)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._container(node, node.items if node.ctx == "load" else [], frame, super().visit_Tuple)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._container(node, [pair.value for pair in node.items], frame, super().visit_Dict)

    def _container(
        self, node: nodes.Expr, items: Iterable[nodes.Expr], frame: Frame, visit: Callable[[Any, Frame], None]
    ) -> None:
        grows = not all(self._sizes.is_given(item) for item in items)
        self.write("environment.measured(" if grows else "")
        visit(node, frame)
        self.write(")" if grows else "")

    def _call(self, name: str, arguments: Iterable[nodes.Expr], frame: Frame, first: str = "") -> None:
        self.write(f"environment.{name}({first}")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")
