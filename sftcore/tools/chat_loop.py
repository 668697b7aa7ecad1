"""A conversation in the terminal: read what the user types, carry out commands and show the model's answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from attrs import define, field

from sftcore.chat.served.generation import Sampling
from sftcore.core.errors import ModelError, nearest
from sftcore.core.visible import visible
from sftcore.tools.chat_model import ChatModel, Reply, Turn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = {
    "/help": "show this list",
    "/clear": "start a new conversation with the same system prompt",
    "/system TEXT": "set the system prompt and start a new conversation; without TEXT, remove it",
    "/adapter on|off": "answer with the adapter, or with the base model alone",
    "/compare": "switch on or off answers with and without the adapter, side by side",
    "/exit": "leave (or press Ctrl-D); Ctrl-C stops an answer",
}
_WITH, _WITHOUT = "with the adapter", "base model alone"


@define
class Chat:
    """A conversation with a model. Answers are written to `out`; statistics and notices are written to `err`.

    In compare mode, the conversation continues from the answer given with the adapter.
    """

    model: ChatModel
    sampling: Sampling
    system: str | None = None
    adapter: bool = True
    compare: bool = False
    out: TextIO = field(factory=lambda: sys.stdout)
    err: TextIO = field(factory=lambda: sys.stderr)
    turns: list[Turn] = field(factory=list)

    def ask(self, text: str) -> Reply:
        """Answer one turn, and add both to the conversation.

        Raises:
            ModelError: the model cannot answer; the conversation stays as it was.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            replies = self._both() if self.compare else [self._streamed(self.adapter)]
        except ModelError:
            self.turns.pop()
            raise
        reply = replies[0]
        if reply.dropped:
            self.show_notice(f"The context is full, so the {reply.dropped} oldest turns were dropped.")
            del self.turns[: reply.dropped]
        self.turns.append({"role": "assistant", "content": reply.text})
        for name, one in zip((_WITH, _WITHOUT), replies, strict=False):
            self.show_notice(f"{f'{name}: ' if self.compare else ''}{one.sentence}")
        return reply

    def run(self, read: Callable[[], str]) -> None:
        """Answer each line that `read` returns, until it raises EOFError or the user leaves."""
        while True:
            try:
                text = read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if text in ("/exit", "/quit"):
                return
            try:
                if text.startswith("/"):
                    self.show_notice(self.command(text))
                elif text:
                    self.ask(text)
            except ModelError as error:
                self.show_notice(f"{error}")

    def command(self, text: str) -> str:
        """Carry out a command, and return the message to show."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "/help":
            return "\n".join(f"{name:<16} {what}" for name, what in HELP.items())
        if word == "/clear":
            self.turns.clear()
            return "Started a new conversation."
        if word == "/system":
            self.system = rest or None
            self.turns.clear()
            return f"Started a new conversation {'with this' if rest else 'without a'} system prompt."
        if word in ("/adapter", "/compare"):
            return self._switch(word, rest)
        known = [name.partition(" ")[0] for name in HELP]
        return f'There is no command "{word}".{nearest(word, known)} Commands: {" ".join(known)}'

    def _switch(self, word: str, rest: str) -> str:
        if not self.model.has_adapter:
            return "This is a whole model, so it has no adapter to switch."
        if rest not in ("", "on", "off") or (word == "/adapter" and not rest):
            return f'"{word}" must be followed by on or off.'
        if word == "/compare":
            self.compare = not self.compare if not rest else rest == "on"
            return "Showing both answers." if self.compare else "Showing one answer."
        self.adapter, self.compare = rest == "on", False
        return f"Answering {'with the adapter' if self.adapter else 'with the base model alone'}."

    def show_notice(self, text: str) -> None:
        """Write a line that is not part of an answer."""
        print(visible(text), file=self.err, flush=True)

    # --- Answers ----------------------------------------------------------------------------------------------------
    @property
    def _conversation(self) -> list[Turn]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def _streamed(self, adapter: bool) -> Reply:
        is_terminal = self.out.isatty()

        def show(piece: str) -> None:
            # an answer must not control the terminal; a pipe gets it unchanged
            print(visible(piece) if is_terminal else piece, end="", file=self.out, flush=True)

        reply = self.model.answer(self._conversation, self.sampling, adapter=adapter, on_text=show)
        print(file=self.out, flush=True)
        return reply

    def _both(self) -> list[Reply]:
        if self.out.isatty():
            return self._columns()
        print(f"{_WITH}:", file=self.out)
        first = self._streamed(True)
        print(f"\n{_WITHOUT}:", file=self.out)
        return [first, self._streamed(False)]

    def _columns(self) -> list[Reply]:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.out)
        texts = ["", ""]
        replies = []
        with Live(_table(texts, console), console=console, auto_refresh=False) as live:
            for i, on in enumerate((True, False)):

                def show(piece: str, i: int = i) -> None:
                    texts[i] += visible(piece)
                    live.update(_table(texts, console), refresh=True)

                replies.append(self.model.answer(self._conversation, self.sampling, adapter=on, on_text=show))
        return replies


def _table(texts: list[str], console: Console) -> Table:
    from rich.box import ROUNDED
    from rich.table import Table
    from rich.text import Text

    table = Table(_WITH, _WITHOUT, box=ROUNDED, width=min(console.width, 160))
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(text) for text in texts))
    return table
