"""Compiles a chat template as Jinja does, into code that counts what it makes and looks at the clock while it runs."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sftcore.chat.sandbox.bounds import METHODS
from sftcore.chat.sandbox.limits import SMALL

OF_MAPPINGS = frozenset(dir(dict))
_OF_TEXTS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map", "join"}
_OF_LOOPS = frozenset({"index", "index0", "revindex", "revindex0", "length", "depth", "depth0", "first", "last"})
_AS_TEXT = ("(o if type(o := ", ") is str else context.text(o))")
_CHAINED = 8


class Generator(CodeGenerator):
    """In the code that it writes, `context` is a `Rendering`, and `step` and `concat` are two of its methods.

    What templates ask for most (a key of a message, `loop.first`, `text.strip()`) takes a shorter way than in Jinja, so
    that the counting costs no time on the whole.
    """

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("step = context.step = environment.steps()")
        self.writeline("concat = context.joined")

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> None:
        method = _counted_by(node)
        self.write(f"context.{method}(" if method else "")
        super().visit(node, *args, **kwargs)
        self.write(")" if method else "")

    def _refuse(self, node: Any, frame: Frame) -> None:
        self.fail(f"{type(node).__name__.lower()} is not available to chat templates", node.lineno)

    # a block would start its own count, and the others have nothing to load
    visit_Block = visit_Extends = visit_Include = visit_Import = visit_FromImport = _refuse

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:
        if node.name in ("varargs", "kwargs"):  # through them, a macro could nest values without their being measured
            self.fail(f'the name "{node.name}" is not available to chat templates', node.lineno)
        super().visit_Name(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.ExprStmt(_code("step()")))
        if node.test is not None:
            node.test = _after_step(node.test)
        super().visit_For(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, (nodes.TemplateData, nodes.Const)):
            raise nodes.Impossible  # computing it during compilation would not be counted
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(_AS_TEXT[0])

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(_AS_TEXT[1])

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        first: Any = node.left
        others = [node.right]
        while isinstance(first, nodes.Add) and len(others) < _CHAINED:
            first, others = first.left, [first.right, *others]
        operands = [first, *others]
        if not any(isinstance(operand, nodes.Const) and isinstance(operand.value, str) for operand in operands):
            self._write("context.built(", operands, frame, " + ")
        elif frame.buffer is None:  # outside of macros, few values are kept at a time, so that small ones do not matter
            self._write("(o if len(o := ", operands, frame, " + ", f") < {SMALL} else context.made(o))")
        else:
            self._write("context.made(", operands, frame, " + ")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        start, end = _AS_TEXT
        self._write(f"concat([{start}", node.nodes, frame, f"{end}, {start}", f"{end}])")

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        if isinstance(node.right, nodes.Const):  # as in `loop.index0 % 2`
            self._write("(v % ", [node.right], frame, end=" if type(v := ")
            self._write("", [node.left], frame, end=") is int else environment.call_binop(context, '%', v, ")
            self._write("", [node.right], frame, end="))")
        else:
            super().visit_Mod(node, frame)

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        if not _is_const(node.expr):
            node.expr = _after_step(node.expr)
        super().visit_Operand(node, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        called, is_plain = node.node, not (node.kwargs or node.dyn_args or node.dyn_kwargs or forward_caller)
        if is_plain and isinstance(called, nodes.Getattr) and (way := _way_to_call(called.attr, node.args)):
            self._write(f"environment.{way}(context, {called.attr!r}, ", [called.node, *node.args], frame)
            return
        is_own = isinstance(called, nodes.ExtensionAttribute)  # of `{% generation %}`
        self._write("context.call(" if is_own else "environment.call(context, ", [called], frame, end="")
        self.signature(node, frame, {"caller": "caller"} if forward_caller else None)
        self.write(")")

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        self._look_up_first(node.node, node.attr if node.attr not in OF_MAPPINGS else None, frame)
        super().visit_Getattr(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        self._look_up_first(node.node, node.arg.value if isinstance(node.arg, nodes.Const) else None, frame)
        if not isinstance(node.arg, (nodes.Const, nodes.Slice)):
            node.arg = _after_step(node.arg)
        super().visit_Getitem(node, frame)
        self.write(")")

    def _look_up_first(self, node: nodes.Expr, key: Any, frame: Frame) -> None:
        self.write("(")
        if isinstance(node, nodes.Name) and isinstance(key, str):
            name = frame.symbols.ref(node.name)
            if node.name == "loop" and key in _OF_LOOPS:
                self.write(f"{name}.{key} if type({name}) is LoopContext else ")
            else:
                self.write(f"{name}[{key!r}] if type({name}) is dict and {key!r} in {name} else ")

    def _write(self, start: str, listed: list[nodes.Expr], frame: Frame, between: str = ", ", end: str = ")") -> None:
        self.write(start)
        for index, node in enumerate(listed):
            self.write(between if index else "")
            self.visit(node, frame)
        self.write(end)


def _counted_by(node: nodes.Node) -> str:
    """The method of `Rendering` that counts the node's value, or "" where its own code does."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return "made"
    is_container = isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load"
    return "put" if is_container and not _is_const(node) else ""


def _way_to_call(method: str, arguments: list[nodes.Expr]) -> str:
    """The environment's shorter way to call a method that texts or mappings have, or "" where there is none."""
    if method in ("get", "items", "keys", "values"):
        return "of_mapping"
    is_bounded = method in METHODS and (arguments or not method.endswith("strip"))
    return ("of_text_bounded" if is_bounded else "of_text") if method in _OF_TEXTS else ""


def _is_const(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(_is_const, node.items))
    return isinstance(node, nodes.Const)


def _after_step(node: nodes.Node) -> nodes.Expr:
    return nodes.Or(_code("step()"), node)  # a step returns None


def _code(text: str) -> nodes.Expr:
    node: nodes.InternalName = object.__new__(nodes.InternalName)  # as Jinja's parser makes them
    nodes.Node.__init__(node, text)
    return node
