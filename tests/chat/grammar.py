"""Random chat templates of a grammar, random conversations, and an oracle that knows what the assistant must write.

A template is drawn as a `Style`. It is written down twice: as Jinja, and as Python that renders a conversation and says
at once which characters are the assistant's, because it writes them. The two share no code with sftcore.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from sftcore import Message
from tests.conftest import make_tokenizer

EOS = "</s>"
TOKENS = ("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|system|>",
          "<|turn|>", "<|USER|>", "<|BOT|>", "<|TOOL|>", "<|SYSTEM|>", "<|eom|>", "<|return|>", "<|ready|>", "<|RESP|>",
          "<|/RESP|>", "<|calls|>", "<|/calls|>", "<|result|>", "<|/result|>")  # fmt: skip
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>")
LACKING = "<|stop|>"
SYSTEM = "You are a careful and friendly assistant."


@dataclass(frozen=True)
class Style:
    """One template.

    heads: what opens a turn of each role. end: what ends one, with `ending`: "turn" behind each, "next" before the next
    header, "header" by nothing but the next header, "last" by another token behind the last turn. `call_end` ends a
    turn of calls, where that is another one. `think`: where reasoning is shown; `empty`: where an empty block is.
    `prompt`: what the generation prompt holds behind the header, and when it is written. `calls`: how they are printed,
    as "ids" without the names, as "twice" with the name at both ends. `tools`: how their answers are, as "named" with
    the name of the call. `rewrites`: the words of users and of the system are changed.
    """

    heads: dict[str, str]
    end: str
    ending: str
    behind: str
    call_end: str
    default_system: bool
    bos: bool
    trim: bool
    think: str
    empty: str
    prompt: str
    marker: bool
    calls: str
    tools: str
    closes_with_eos: bool
    lists_tools: bool
    rewrites: bool


HEADS = {
    "chatml": lambda role: f"<|im_start|>{role}\n",
    "llama": lambda role: f"<|head|>{role}<|/head|>\n\n",
    "glm": lambda role: f"<|{role}|>\n",
    "cohere": lambda role: "<|turn|>" + {"user": "<|USER|>", "assistant": "<|BOT|>", "tool": "<|TOOL|>"}.get(
        role, "<|SYSTEM|>"
    ),
    "plain": lambda role: {"user": "### User:\n", "assistant": "### Answer:\n", "tool": "### Result:\n"}.get(role, ""),
}  # fmt: skip


def draw_style(rng: random.Random) -> Style:
    kind = rng.choice(list(HEADS))
    heads = {role: HEADS[kind](role) for role in ("user", "assistant", "tool", "system")}
    ending = rng.choice(["turn", "turn", "turn", "next", "header", "last"])
    if kind == "plain" and ending == "header":
        ending = "turn"
    prompt = rng.choice(["header", "header", "header", "think", "empty", "none", "user", "ready"])
    think = rng.choice(["never", "always", "last", "newest"])
    empty = rng.choice(["never", "never", "last", "always", "earlier"])
    marker = rng.random() < 0.25
    if prompt == "none":
        # without a generation prompt nobody knows which part of a header is given
        think, empty, marker = "never", "never", False
    if ending == "header":
        marker = False  # what closes a response could end it as well
    tools = rng.choice(["role", "named", "grouped", "inline"])
    calls = rng.choice(["blocks", "list", "raw", "ids", "twice"])
    if tools == "inline":
        calls = "list"
        ending = "turn" if ending in ("next", "header", "last") else ending
        prompt = prompt if prompt in ("header", "user") else "header"
    return Style(
        heads=heads,
        end=rng.choice(["<|im_end|>", "<|im_end|>", EOS]),
        ending=ending,
        behind=rng.choice(["", "\n"]) if ending == "turn" else "",
        call_end=rng.choice(["", "", "<|eom|>"]) if ending == "turn" and tools != "inline" else "",
        default_system=rng.random() < 0.3,
        bos=rng.random() < 0.5,
        trim=rng.random() < 0.3,
        think=think,
        empty=empty,
        prompt=prompt,
        marker=marker,
        calls=calls,
        tools=tools,
        closes_with_eos=rng.random() < 0.15 and ending == "turn",
        lists_tools=rng.random() < 0.5,
        rewrites=rng.random() < 0.2,
    )


def draw(rng: random.Random) -> tuple[Style, str]:
    """A template, and which of its tokens the tokenizer has."""
    style, kind = draw_style(rng), rng.choice(["all", "all", "added", "lacking"])
    if kind != "lacking":
        return style, kind
    if style.ending != "turn" or style.tools == "inline" or style.closes_with_eos:
        # what ends a turn with the next header is no end where neither is a token
        return style, "all"
    return replace(style, end=LACKING), kind


# --- As Jinja ---------------------------------------------------------------------------------------------------------
def jinja(style: Style) -> str:
    def text(words: str) -> str:
        return "{{ " + json.dumps(words) + " }}" if words else ""

    heads = "{% set heads = " + json.dumps(style.heads) + " %}"
    content = "m.content | trim" if style.trim else "m.content"
    opens = text(style.end) if style.ending == "next" else ""
    before = "{% if ns.open %}" + opens + "{% endif %}{% set ns.open = true %}" if opens else ""
    ends = {"turn": text(style.end + style.behind), "last": text(style.end)}.get(style.ending, "")
    own_end = ends
    if style.ending == "last":
        own_end = "{{ '<|return|>' if loop.last else " + json.dumps(style.end) + " }}"
    call_end = text(style.call_end + style.behind) if style.call_end else "" if style.tools == "inline" else own_end
    shown = {"never": "false", "always": "true", "last": "loop.last", "newest": "loop.index0 > ns.user"}[style.think]
    empty = {"never": "false", "always": "true", "last": "loop.last", "earlier": "not loop.last"}[style.empty]
    arguments = "c.function.arguments" if style.calls == "raw" else "c.function.arguments | tojson"
    if style.calls == "list":
        calls = (
            '<|calls|>[{% for c in m.tool_calls %}{"{{ c.function.name }}": {{ ' + arguments + " }}}"
            "{{ ', ' if not loop.last }}{% endfor %}]<|/calls|>"
        )
    elif style.calls in ("ids", "twice"):
        called = "{{ c.id }}" if style.calls == "ids" else "{{ c.function.name }}"
        closed = "</{{ c.function.name }}>" if style.calls == "twice" else ""
        calls = (
            f"{{% for c in m.tool_calls %}}<tool_call>{called}\n{{{{ {arguments} }}}}{closed}</tool_call>{{% endfor %}}"
        )
    else:
        calls = (
            '{% for c in m.tool_calls %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ '
            + arguments
            + " }}}\n</tool_call>{% endfor %}"
        )
    say = "<|RESP|>{{ " + content + " }}<|/RESP|>" if style.marker else "{{ " + content + " }}"
    header = "{{ heads['assistant'] }}"
    if style.tools == "inline":
        header = "{% if loop.first or loop.previtem.role != 'tool' %}" + header + "{% endif %}"
    assistant = (
        before + header + "{% if m.reasoning_content and " + shown + " %}<think>\n{{ m.reasoning_content }}\n</think>"
        "\n\n{% elif " + empty + " %}<think>\n\n</think>\n\n{% endif %}{% if m.content or not m.tool_calls %}" + say
        + "{% endif %}{% if m.tool_calls %}" + calls + call_end + "{% else %}" + own_end + "{% endif %}"
    )  # fmt: skip
    tool = {
        "role": before + "{{ heads['tool'] }}{{ m.content }}" + ends,
        "named": "{% for p in messages[:loop.index0] %}{% for c in p.tool_calls or [] %}{% if c.id == m.tool_call_id %}"
        "{% set ns.name = c.function.name %}{% endif %}{% endfor %}{% endfor %}" + before + "{{ heads['tool'] }}"
        "{{ ns.name }}: {{ m.content }}" + ends,
        "grouped": "{% if loop.first or loop.previtem.role != 'tool' %}" + before + "{{ heads['user'] }}{% endif %}"
        "<tool_response>\n{{ m.content }}\n</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}" + ends
        + "{% endif %}",
        "inline": "<|result|>{{ m.content }}<|/result|>",
    }[style.tools]  # fmt: skip
    rewritten = f"{content} | replace('hello', 'HELLO !')" if style.rewrites else content
    other = before + "{{ heads[m.role] }}{{ " + rewritten + " }}" + ends
    if style.lists_tools:
        other += "{% if tools and loop.first %}{{ heads['system'] }}Tools: {{ tools | tojson }}" + ends + "{% endif %}"
    given = {
        "think": header_text(style) + "<think>\n", "empty": header_text(style) + "<think>\n\n</think>\n\n",
        "ready": "<|ready|>" + header_text(style), "none": "",
    }.get(style.prompt, header_text(style))  # fmt: skip
    asked = "add_generation_prompt" + {"user": " and messages[-1].role == 'user'"}.get(style.prompt, "")
    if style.tools == "inline":
        asked += " and messages[-1].role != 'tool'"
    return (
        heads
        + "{% set ns = namespace(user=-1, open=false, name='') %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.user = loop.index0 %}{% endif %}{% endfor %}"
        + ("{{ bos_token }}" if style.bos else "")
        + (
            "{% if messages[0].role != 'system' %}" + before + "{{ heads['system'] }}" + SYSTEM + ends + "{% endif %}"
            if style.default_system
            else ""
        )
        + "{% for m in messages %}{% if m.role == 'assistant' %}" + assistant
        + "{% elif m.role == 'tool' %}" + tool + "{% else %}" + other + "{% endif %}{% endfor %}"
        + ("{% if not add_generation_prompt %}{{ eos_token }}{% endif %}" if style.closes_with_eos else "")
        + ("{% if " + asked + " %}" + opens + text(given) + "{% endif %}" if given else "")
    )  # fmt: skip


def header_text(style: Style) -> str:
    return style.heads["assistant"]


# --- The oracle -------------------------------------------------------------------------------------------------------
@dataclass
class Oracle:
    """The rendering, built up piece by piece; `turns` are the assistant's words, `opened` says that a header came."""

    style: Style
    text: str = ""
    turns: list[str] = field(default_factory=list)
    opened: bool = False

    def write(self, text: str) -> None:
        self.text += text

    def boundary(self) -> None:
        """What comes before a header."""
        if self.style.ending == "next" and self.opened:
            self.write(self.style.end)
        self.opened = True


def first_token(text: str) -> str:
    return next((text[: len(token)] for token in TOKENS if text.startswith(token)), "")


def expected(style: Style, turns: list[Message], tools: Any, *, lacking: bool) -> tuple[str, list[str]]:
    """The rendering with an appended stop, and what is to be supervised of each assistant message in turn."""
    oracle = Oracle(style)
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
    ends = {"turn": style.end + style.behind, "last": style.end}.get(style.ending, "")
    if style.bos:
        oracle.write("<s>")
    if style.default_system and turns[0].role != "system":
        oracle.boundary()
        oracle.write(style.heads["system"] + SYSTEM + ends)
    stop = ""
    for i, turn in enumerate(turns):
        content = str(turn.content or "")
        said = content.strip() if style.trim else content
        before = turns[i - 1].role if i else ""
        after = turns[i + 1].role if i + 1 < len(turns) else ""
        if turn.role == "tool":
            if style.tools in ("role", "named"):
                oracle.boundary()
                named = "" if style.tools == "role" else f"{name_of(turn.tool_call_id, turns[:i])}: "
                oracle.write(style.heads["tool"] + named + content + ends)
            elif style.tools == "inline":
                oracle.write(f"<|result|>{content}<|/result|>")
            else:
                if before != "tool":
                    oracle.boundary()
                    oracle.write(style.heads["user"])
                oracle.write(f"<tool_response>\n{content}\n</tool_response>" + (ends if after != "tool" else ""))
            continue
        if turn.role != "assistant":
            oracle.boundary()
            said = said.replace("hello", "HELLO !") if style.rewrites else said
            oracle.write(style.heads[turn.role] + said + ends)
            if style.lists_tools and tools and i == 0:
                oracle.write(style.heads["system"] + "Tools: " + json.dumps(tools, ensure_ascii=False) + ends)
            continue
        oracle.boundary()
        headed = not (style.tools == "inline" and before == "tool")
        oracle.write(style.heads["assistant"] if headed else "")
        shown = {"never": False, "always": True, "last": not after, "newest": i > last_user}[style.think]
        empty = {"never": False, "always": True, "last": not after, "earlier": bool(after)}[style.empty]
        own = ""
        if turn.reasoning and shown:
            own += f"<think>\n{turn.reasoning}\n</think>\n\n"
        elif empty:
            own += "<think>\n\n</think>\n\n"
        if turn.content or not turn.tool_calls:
            own += f"<|RESP|>{said}<|/RESP|>" if style.marker else said
        own += called(style, turn)
        end, beyond = style.end, style.behind
        if turn.tool_calls and style.tools == "inline":
            end, beyond = "", ""  # what closes the calls ends the turn
        elif turn.tool_calls and style.call_end:
            end = style.call_end
        elif style.ending == "last" and not after:
            end = "<|return|>"
        elif style.ending == "header":
            end = beyond = ""
        elif style.ending == "next":
            beyond = ""
        given = {"think": "<think>\n", "empty": "<think>\n\n</think>\n\n"}.get(style.prompt, "")
        # behind a tool that answers within the turn nothing is prompted
        whole = own + (end if style.ending != "next" else "") + beyond
        start = len(given) if headed and given and whole.startswith(given) else 0
        turn_text = own[start:]
        if style.ending == "header" and not end:
            following = {"user": "user", "system": "system", "tool": "tool", "assistant": ""}.get(after, "")
            if not after:
                following = "tool" if turn.tool_calls else "user"
            if following == "tool" and style.tools == "grouped":
                following = "user"
            token = first_token(style.heads[following]) if following else ""
            oracle.write(own)
            oracle.turns.append(turn_text + token)
            stop = token if not after else ""
        elif style.ending == "next":
            oracle.write(own)
            oracle.turns.append(turn_text + (end if after or not lacking else ""))
            stop = end if not after else ""
        else:
            oracle.write(own + end + beyond)
            oracle.turns.append(turn_text + end)
            if lacking and not after and end not in (EOS, ""):
                oracle.turns[-1] += beyond
                stop = EOS
    if style.closes_with_eos:
        oracle.write(EOS)
        if stop:
            oracle.turns[-1] += EOS
            stop = ""
    if stop and turns[-1].role == "assistant":
        oracle.write(stop)
        if lacking and style.ending == "turn":
            oracle.turns[-1] += stop
    return oracle.text, oracle.turns


def name_of(number: str | None, turns: list[Message]) -> str:
    """The name of the newest call with this id."""
    calls = [call for turn in turns for call in turn.tool_calls if call["id"] == number]
    return str(calls[-1]["function"]["name"])


def called(style: Style, turn: Message) -> str:
    if not turn.tool_calls:
        return ""
    printed = []
    for call in turn.tool_calls:
        name = call["function"]["name"]
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if style.calls == "list":
            printed.append(f'{{"{name}": {arguments}}}')
        elif style.calls == "ids":
            printed.append(f"<tool_call>{call['id']}\n{arguments}</tool_call>")
        elif style.calls == "twice":
            printed.append(f"<tool_call>{name}\n{arguments}</{name}></tool_call>")
        else:
            printed.append(f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>')
    return f"<|calls|>[{', '.join(printed)}]<|/calls|>" if style.calls == "list" else "".join(printed)


# --- Conversations ----------------------------------------------------------------------------------------------------
HOSTILE = (
    "</s>", "<|im_end|>", "<|user|>", "<|im_start|>assistant\n", "</tool_call>", "<|/calls|>", "<|eom|>", "a</s>b",
    "[/INST]", "<s>hm</s>", "<|return|>", "Tools:", "### Answer:\n", "'", '"', "\\", "{}", "q7z00000zq",
)  # fmt: skip
WORDS = ("hello", "it is so", "你好，世界", "naïve 🎉", "x", "line one\nline two", "a  b", "42", "None", "no.")
NAMES = ("now", "get_weather", "search", "f")


def words(rng: random.Random) -> str:
    chosen = rng.choice(WORDS)
    if rng.random() < 0.3:
        chosen = f"{chosen} {rng.choice(HOSTILE)} {rng.choice(WORDS)}"
    if rng.random() < 0.15:
        chosen = rng.choice((" ", "\n", "  \n")) + chosen + rng.choice(("", " ", "\n"))
    return chosen


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 2 else 5)
    if kind < 2:
        return words(rng)
    if kind == 7:
        return {rng.choice("abc"): value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return rng.choice([rng.randrange(-5, 1000), rng.random(), True, None, "", rng.choice(HOSTILE)])


def draw_talk(rng: random.Random) -> list[Message]:
    turns: list[Message] = []
    if rng.random() < 0.3:
        turns.append(Message("system", words(rng)))
    elif rng.random() < 0.06:
        turns.append(Message("assistant", words(rng)))
    number = 0
    for _ in range(rng.randrange(1, 4)):
        turns.append(Message("user", "" if rng.random() < 0.08 else words(rng)))
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
            calls = []
            for _ in range(rng.choice([1, 1, 2])):
                names = [rng.choice(("zone", "text", "n", "deep")) for _ in range(rng.randrange(4))]
                wordless = rng.random() < 0.15
                arguments = {one: rng.choice([True, None, "", [], {}]) if wordless else value(rng) for one in names}
                function = {"name": rng.choice(NAMES), "arguments": arguments}
                calls.append({"id": f"call{number:05}", "type": "function", "function": function})
                number += rng.random() < 0.9
            content = words(rng) if rng.random() < 0.3 else rng.choice(["", None])
            turns.append(Message("assistant", content, reasoning=reasoning(rng), tool_calls=calls))
            if rng.random() < 0.1 and len(turns) > 2:
                return turns
            answered = [
                Message(
                    "tool", words(rng) if rng.random() < 0.9 else "", name=c["function"]["name"], tool_call_id=c["id"]
                )
                for c in calls
            ]
            turns += answered
        if rng.random() < 0.08:
            turns.append(Message("assistant", rng.choice(["", " ", "\n\n"])))
        else:
            turns.append(Message("assistant", words(rng), reasoning=reasoning(rng)))
        if rng.random() < 0.06:
            turns.append(Message("assistant", words(rng)))
    return turns


def reasoning(rng: random.Random) -> str | None:
    return rng.choice(["because", "hm </s> hm", "two\nlines"]) if rng.random() < 0.3 else None


TOOLS = [{"type": "function", "function": {"name": name, "description": f"what {name} does", "parameters": {}}}
         for name in NAMES]  # fmt: skip


# --- Tokenizers -------------------------------------------------------------------------------------------------------
@lru_cache
def tokenizer_of(kind: str) -> Any:
    """All tokens special, some of them added alone, or the ends of turns lacking."""
    tokenizer = make_tokenizer()
    tokenizer._tokenizer = make_tokenizer()._tokenizer
    special = [token for token in TOKENS if kind != "added" or "start" in token or "head" in token]
    if kind == "lacking":
        special = [token for token in TOKENS if "|>" in token and "eom" not in token]
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": EOS, "additional_special_tokens": special})
    if kind != "lacking":
        tokenizer.add_tokens([*ORDINARY, *(token for token in TOKENS if token not in special)])
    return tokenizer
