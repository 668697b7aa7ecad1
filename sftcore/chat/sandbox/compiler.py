"""How a chat template becomes Python code: as with Jinja, but the code says what it makes, and asks before long steps."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from sftcore.chat.sandbox.bounds import METHODS
from sftcore.chat.sandbox.limits import SMALL

OF_MAPPINGS = frozenset(dir(dict))
_OF_TEXTS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map", "join"}
_STRIPPING = ("strip", "lstrip", "rstrip")
_OF_LOOPS = frozenset({"index", "index0", "revindex", "revindex0", "length", "depth", "depth0", "first", "last"})
_CHAINED = 8
_AS_TEXT = ("(o if type(o := ", ") is str else context.text(o))")


class Generator(CodeGenerator):
    """In the code it writes, `context` is a `Rendering`, and `step` and `concat` are two of its methods."""

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("step = context.step = environment.steps()")
        self.writeline("concat = context.joined")

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> None:
        reports_to = _reports_to(node)
        self.write(f"{reports_to}(" if reports_to else "")
        super().visit(node, *args, **kwargs)
        self.write(")" if reports_to else "")

    def _refuse(self, node: Any, frame: Frame) -> None:
        self.fail(f"{type(node).__name__.lower()} is not there for chat templates", node.lineno)

    # a block would begin to count anew; the others have nothing to load
    visit_Block = visit_Extends = visit_Include = visit_Import = visit_FromImport = _refuse

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:
        if node.name in ("varargs", "kwargs"):  # a macro would put values inside each other with them, unmeasured
            self.fail(f'the name "{node.name}" is not there for chat templates', node.lineno)
        super().visit_Name(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.ExprStmt(_code("step()")))
        if node.test is not None:
            node.test = _after_step(node.test)
        super().visit_For(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, (nodes.TemplateData, nodes.Const)):
            raise nodes.Impossible  # it would be computed now, when nothing is counted yet
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(_AS_TEXT[0])

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(_AS_TEXT[1])

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        first, others = node.left, [node.right]
        while isinstance(first, nodes.Add) and len(others) < _CHAINED:
            first, others = first.left, [first.right, *others]
        operands = [first, *others]
        is_text = any(isinstance(operand, nodes.Const) and isinstance(operand.value, str) for operand in operands)
        if is_text and frame.buffer is None:  # where little is kept, as nothing calls itself
            self._write("(o if len(o := ", operands, frame, " + ", f") < {SMALL} else context.made(o))")
        else:
            self._write("context.made(" if is_text else "context.built(", operands, frame, " + ")

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
        called, named = node.node, node.kwargs or node.dyn_args or node.dyn_kwargs or forward_caller
        way = "" if named or not isinstance(called, nodes.Getattr) else _way(called.attr, node.args)
        if way:
            self._write(f"environment.{way}(context, {called.attr!r}, ", [called.node, *node.args], frame)
        else:
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
        """The usual case, without a call: a name stands for a mapping with that key, or for what Jinja tells of a loop."""
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


def _reports_to(node: nodes.Node) -> str:
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return "context.made"
    is_container = isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load"
    return "context.put" if is_container and not _is_const(node) else ""


def _way(method: str, arguments: list[nodes.Expr]) -> str:
    """The environment's way of calling a method that texts or mappings have."""
    if method in ("get", "items", "keys", "values"):
        return "of_mapping"
    is_quick = method not in METHODS or (method in _STRIPPING and not arguments)
    return ("of_text" if is_quick else "of_text_measured") if method in _OF_TEXTS else ""


def _is_const(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(_is_const, node.items))
    return isinstance(node, nodes.Const)


def _after_step(node: nodes.Expr) -> nodes.Expr:
    return nodes.Or(_code("step()"), node)  # a step returns None


def _code(text: str) -> nodes.Expr:
    node: nodes.InternalName = object.__new__(nodes.InternalName)  # as Jinja's parser makes them
    nodes.Node.__init__(node, text)
    return node
