"""Python scripts as a syntax tree: the arguments of the calls that set a training up, and nothing is run.

Constants, names that the file sets to one, `torch.bfloat16`, and sums and products of numbers are read. What else a
script computes is not known, and is named.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftcore.core.errors import RecipeError
from sftcore.importers.read.source import ENVIRONMENT, UNKNOWN, Key, Place, Source, Unread, text_of

CONFIG, LORA, BITS, MODEL, TOKENIZER = "SFTConfig", "LoraConfig", "BitsAndBytesConfig", "from_pretrained", "tokenizer"
PEFT, TRAINER, DATA, TEMPLATE, MARKERS = (
    "get_peft_model",
    "SFTTrainer",
    "load_dataset",
    "get_chat_template",
    "responses",
)
PLAIN_ARGUMENTS = "TrainingArguments"
"""The groups under which a call's arguments stand."""
_CALLS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "SFTConfig": (CONFIG, ("output_dir",)),
    "TrainingArguments": (PLAIN_ARGUMENTS, ("output_dir",)),
    "UnslothTrainingArguments": (CONFIG, ("output_dir",)),
    "Seq2SeqTrainingArguments": (PLAIN_ARGUMENTS, ("output_dir",)),
    "LoraConfig": (LORA, ()),
    "BitsAndBytesConfig": (BITS, ()),
    "get_peft_model": (PEFT, ("model",)),
    "SFTTrainer": (TRAINER, ("model", "args")),
    "UnslothTrainer": (TRAINER, ("model", "args")),
    "Trainer": (TRAINER, ("model", "args")),
    "load_dataset": (DATA, ("path", "name")),
    "get_chat_template": (TEMPLATE, ("tokenizer", "chat_template")),
    "train_on_responses_only": (MARKERS, ("trainer",)),
    "DataCollatorForCompletionOnlyLM": (MARKERS, ("response_part", "instruction_part")),
}
_TOKENIZERS = ("AutoTokenizer", "AutoProcessor", "PreTrainedTokenizerFast")
_MODELS = ("AutoModelForCausalLM", "FastLanguageModel", "FastModel", "FastVisionModel", "AutoModelForImageTextToText",
           "AutoLigerKernelForCausalLM", "SFTTrainer")  # fmt: skip
_BF16 = ("is_bfloat16_supported", "is_bf16_supported", "is_torch_bf16_gpu_available")
_OBJECTS = ("model", "tokenizer", "processing_class", "args", "peft_config", "train_dataset", "eval_dataset", "trainer",
            "quantization_config", "data_collator", "processor")  # fmt: skip
"""Arguments that pass on what another call of the script made."""
OURS = "(an object of the script)"
_AFTERWARDS = {
    "merge_and_unload": "sftcore merge does it, after the training",
    "save_pretrained_merged": "sftcore merge does it, after the training",
    "save_pretrained_gguf": "sftcore merge writes the merged model, which llama.cpp converts to GGUF",
    "save_pretrained_torchao": "sftcore merge writes the merged model; sftcore quantize quantises it",
}
"""Calls that export what was trained, and what does it here."""
RENDERS, ALPACA = "renders its rows by the chat template", "has Alpaca's prompt"
LONGEST = 100_000


class _NotKnown(Exception):
    """A value that only running the script would give."""


def read_python(path: Path) -> Source:
    """The arguments of a script's calls, grouped by what is called.

    Raises:
        RecipeError: the file is not Python, or has none of the calls.
    """
    text = text_of(path)
    try:
        tree = ast.parse(_without_magics(text))
        found = _Reader()
        found.visit(tree)
    except (RecursionError, MemoryError):
        raise RecipeError("the Python is nested too deeply.", where=str(path)) from None
    except (SyntaxError, ValueError) as error:
        place = f"{path} line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else str(path)
        raise RecipeError(f"this is not Python: {getattr(error, 'msg', error)}.", where=place) from None
    if not found.source.values and not found.source.unread:
        names = "SFTConfig, LoraConfig, from_pretrained, SFTTrainer or load_dataset"
        raise RecipeError(f"the script calls none of {names}.", where=str(path), fix="Name the script that trains.")
    return found.source


def _without_magics(text: str) -> str:
    """The text without lines that only a notebook takes: `!pip install …` and `%%capture`."""
    return "\n".join("" if line.lstrip()[:1] in ("!", "%") else line for line in text.split("\n"))


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.source = Source()
        self.names: dict[str, ast.expr | None] = {}
        self.depth = 0

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._bind(target.id, node.value)
            elif isinstance(target, ast.Tuple):
                for one in target.elts:
                    if isinstance(one, ast.Name):
                        self.names[one.id] = None
            elif isinstance(target, ast.Subscript):
                self._environment(target, node.value)
            elif isinstance(target, ast.Attribute):
                self._attribute(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and node.value is not None:
            self._bind(node.target.id, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.names[node.target.id] = None

    def visit_If(self, node: ast.If) -> None:
        main = isinstance(node.test, ast.Compare) and ast.unparse(node.test).startswith("__name__ ==")
        self._nested(node, 0 if main else 1)

    def visit_For(self, node: ast.For) -> None:
        for one in ast.walk(node.target):
            if isinstance(one, ast.Name):
                self.names[one.id] = None
        self._nested(node, 1)

    def visit_While(self, node: ast.While) -> None:
        self._nested(node, 1)

    def _nested(self, node: ast.AST, deeper: int) -> None:
        self.depth += deeper
        self.generic_visit(node)
        self.depth -= deeper

    def _bind(self, name: str, value: ast.expr) -> None:
        """Note what a name stands for; one that is set again in a branch may be either, and is not known."""
        self.names[name] = None if self.depth and name in self.names else value

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and "### Instruction" in node.value and "### Response" in node.value:
            self.source.traits.add(ALPACA)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name, owner = _called(node)
        if name in ("apply_chat_template", "standardize_data_formats", "standardize_sharegpt"):
            self.source.traits.add(RENDERS)
        if name == "from_pretrained":
            group = TOKENIZER if owner in _TOKENIZERS else MODEL if owner in _MODELS or not owner else ""
            if group:
                first = "model_name" if owner.startswith("Fast") else "pretrained_model_name_or_path"
                self._arguments(node, group, (first,))
        elif name in _CALLS and owner not in ("PeftModel",):
            group, order = _CALLS[name]
            self._arguments(node, group, order)
        elif name in ("login", "init") and owner in ("wandb", "huggingface_hub", "") and node.keywords:
            shown = f"{owner + '.' if owner else ''}{name}(…)"
            why = "not run, and what it is given, which may be a secret, is not carried over"
            self.source.unread.append(Unread(Place(node.lineno), shown, why))
        elif name in ("map", "filter", "shuffle", "select", "train_test_split") and owner not in ("os", "np"):
            shown = f".{name}({', '.join(ast.unparse(one)[:60] for one in [*node.args, *node.keywords])})"
            why = "what it does to the rows is not done here: check the rows with sftcore preview"
            self.source.unread.append(Unread(Place(node.lineno), shown, why))
        elif (why := self._afterwards(name, owner, node)) and owner:
            # without its arguments, one of which may be a token
            self.source.unread.append(Unread(Place(node.lineno), f"{owner}.{name}(…)", why))

    def _afterwards(self, name: str, owner: str, node: ast.Call) -> str:
        """What to do for a call that resumes the run, or that exports or publishes what was trained."""
        if name == "train":
            given = [one.value for one in node.keywords if one.arg == "resume_from_checkpoint"]
            off = not given or (isinstance(given[0], ast.Constant) and not given[0].value)
            return "" if off else "resume_from_checkpoint: auto goes on from the newest checkpoint"
        if name in ("push_to_hub", "push_to_hub_merged", "push_to_hub_gguf"):
            return "nothing is published here: push_to_hub with hub_model_id does it at each save"
        return _AFTERWARDS.get(name, "")

    def _arguments(self, node: ast.Call, group: str, order: tuple[str, ...]) -> None:
        given = [(order[i], one) for i, one in enumerate(node.args[: len(order)])]
        for one in node.keywords:
            if one.arg is not None:
                given.append((one.arg, one.value))
            else:
                given += self._spread(one.value)
        if group == DATA and (group in self.source.values):
            group = f"{DATA} {len([one for one in self.source.values if one.startswith(DATA)]) + 1}"
        self.source.values.setdefault(group, {})
        for name, value in given:
            self._argument((group, name), value)
        for extra in node.args[len(order) :]:
            self.source.unread.append(Unread(Place(extra.lineno), f"{group}(… {ast.unparse(extra)[:60]})", UNKNOWN))

    def _spread(self, value: ast.expr) -> list[tuple[str, ast.expr]]:
        """The arguments of `**settings`, where the file says what they are."""
        meant = self._meant(value)
        if isinstance(meant, ast.Dict) and all(isinstance(key, ast.Constant) for key in meant.keys):
            return [(str(key.value), one) for key, one in zip(meant.keys, meant.values, strict=True)
                    if isinstance(key, ast.Constant)]  # fmt: skip
        if isinstance(meant, ast.Call) and _called(meant)[0] == "dict":
            return [(one.arg, one.value) for one in meant.keywords if one.arg]
        self.source.unread.append(Unread(Place(value.lineno), f"**{ast.unparse(value)[:60]}", UNKNOWN))
        return []

    def _argument(self, key: Key, value: ast.expr) -> None:
        place = Place(value.lineno)
        if key[-1] in _OBJECTS and not isinstance(self._meant(value), (ast.Constant, ast.Dict)):
            self.source.set(key, OURS, place)
            return
        try:
            self.source.set(key, self._value(value, 0), place)
        except _NotKnown:
            self.source.not_known(key, f"{key[-1]}={ast.unparse(value)[:80]}", place)

    def _environment(self, target: ast.Subscript, value: ast.expr) -> None:
        if ast.unparse(target.value) in ("os.environ", "environ"):
            try:
                name = str(self._value(target.slice, 0))
                self.source.set((ENVIRONMENT, name), self._value(value, 0), Place(value.lineno))
            except _NotKnown:
                shown = f"{ast.unparse(target)[:60]} = …"
                self.source.unread.append(Unread(Place(value.lineno), shown, UNKNOWN))

    def _attribute(self, target: ast.Attribute, value: ast.expr) -> None:
        """What is set on tokenizer, model or configuration after they were made."""
        shown = f"{ast.unparse(target)[:60]} = {ast.unparse(value)[:60]}"
        owner = ast.unparse(target.value)
        if target.attr in ("pad_token", "eos_token", "bos_token", "chat_template") and "token" in owner.lower():
            try:
                self.source.set((TOKENIZER, target.attr), self._value(value, 0), Place(value.lineno))
                return
            except _NotKnown:
                why = "a pad token is chosen here by itself" if target.attr == "pad_token" else UNKNOWN
                self.source.unread.append(Unread(Place(value.lineno), shown, why))
                return
        self.source.unread.append(Unread(Place(value.lineno), shown, "set after the call: not carried over"))

    def _meant(self, node: ast.expr) -> ast.expr:
        seen = 0
        while isinstance(node, ast.Name) and seen < 20:
            inner = self.names.get(node.id)
            if inner is None:
                return node
            node, seen = inner, seen + 1
        return node

    def _value(self, node: ast.expr, depth: int) -> Any:
        """The plain value of an expression.

        Raises:
            _NotKnown: only running the script would tell.
        """
        if depth > 30:
            raise _NotKnown
        node = self._meant(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._value(one, depth + 1) for one in node.elts]
        if isinstance(node, ast.Dict):
            return {str(self._value(key, depth + 1)): self._value(one, depth + 1)
                    for key, one in zip(node.keys, node.values, strict=True) if key is not None}  # fmt: skip
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, depth)
        if isinstance(node, ast.BinOp):
            return self._binary(node, depth)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return node.attr
        if isinstance(node, ast.JoinedStr):
            return "".join(str(self._value(one, depth + 1)) for one in node.values)
        if isinstance(node, ast.FormattedValue) and node.format_spec is None:
            return self._value(node.value, depth + 1)
        return self._called_value(node, depth)

    def _called_value(self, node: ast.expr, depth: int) -> Any:
        """What a call whose meaning is known stands for."""
        if isinstance(node, ast.Call):
            name, _ = _called(node)
            if name in _BF16:
                return "auto"
            if name in ("BitsAndBytesConfig", "LoraConfig", "SFTConfig"):
                return OURS
            if name in ("str", "Path", "int", "float") and len(node.args) == 1:
                return self._value(node.args[0], depth + 1)
            if name == "getattr" and len(node.args) == 2 and ast.unparse(node.args[0]) == "torch":
                return self._value(node.args[1], depth + 1)
        raise _NotKnown

    def _unary(self, node: ast.UnaryOp, depth: int) -> Any:
        value = self._value(node.operand, depth + 1)
        if isinstance(node.op, ast.USub) and isinstance(value, (int, float)):
            return -value
        if isinstance(node.op, ast.Not):
            return "auto" if value == "auto" else not value
        raise _NotKnown

    def _binary(self, node: ast.BinOp, depth: int) -> Any:
        left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
        if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            if len(left) + len(right) > LONGEST:
                raise _NotKnown
            return left + right
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if not numbers or max(abs(left), abs(right)) > 10**15:
            raise _NotKnown
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, (ast.Div, ast.FloorDiv)) and right:
            return left // right if isinstance(node.op, ast.FloorDiv) else left / right
        raise _NotKnown


def _called(node: ast.Call) -> tuple[str, str]:
    """The name of what is called, and of what it is an attribute."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return node.func.attr, owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(
            owner, ast.Attribute
        ) else "?"
    return (node.func.id, "") if isinstance(node.func, ast.Name) else ("", "")
