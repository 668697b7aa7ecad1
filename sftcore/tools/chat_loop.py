"""A conversation in the terminal: what is typed, what is answered, the commands between."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from attrs import define, field

from sftcore.core.errors import ModelError, nearest
from sftcore.core.visible import visible
from sftcore.tools.chat_model import Reply, Sampling, Speaker, Turn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = {
    "/help": "this list",
    "/clear": "forget the conversation; the system prompt stays",
    "/system TEXT": "set the system prompt and start anew; without TEXT there is none",
    "/adapter on|off": "answer with the adapter, or as the base does",
    "/compare": "both answers side by side, or no longer",
    "/exit": "leave (Ctrl-D too); Ctrl-C stops an answer",
}
_WITH, _WITHOUT = "with the adapter", "the base alone"


@define
class Chat:
    """A conversation with a speaker. Answers go to `out`; all else, statistics and notices, to `err`.

    In compare mode the conversation goes on from the answer with the adapter.
    """

    speaker: Speaker
    sampling: Sampling
    system: str | None = None
    adapter: bool = True
    compare: bool = False
    out: TextIO = field(factory=lambda: sys.stdout)
    err: TextIO = field(factory=lambda: sys.stderr)
    turns: list[Turn] = field(factory=list)

    def ask(self, text: str) -> Reply:
        """Answer one turn, and keep it.

        Raises:
            ModelError: it cannot be asked; the conversation is as it was before.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            replies = self._both() if self.compare else [self._streamed()]
        except ModelError:
            self.turns.pop()
            raise
        reply = replies[0]
        if reply.dropped:
            self.tell(f"The context is full: the oldest {reply.dropped} turns are forgotten.")
            del self.turns[: reply.dropped]
        self.turns.append({"role": "assistant", "content": reply.text})
        for name, one in zip((_WITH, _WITHOUT), replies, strict=False):
            self.tell(f"{f'{name}: ' if self.compare else ''}{one.sentence}")
        return reply

    def run(self, read: Callable[[], str]) -> None:
        """Ask what `read` gives until it raises EOFError or the user leaves."""
        while True:
            try:
                text = read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if text in ("/exit", "/quit"):
                return
            try:
                if text.startswith("/"):
                    self.tell(self.command(text))
                elif text:
                    self.ask(text)
            except ModelError as error:
                self.tell(f"{error}")

    def command(self, text: str) -> str:
        """Carry out a command; returns what is to be said of it."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "/help":
            return "\n".join(f"{name:<16} {what}" for name, what in HELP.items())
        if word == "/clear":
            self.turns.clear()
            return "The conversation is forgotten."
        if word == "/system":
            self.system = rest or None
            self.turns.clear()
            return "A new conversation, with this system prompt." if rest else "A new conversation, without one."
        if word in ("/adapter", "/compare"):
            return self._switch(word, rest)
        known = [name.partition(" ")[0] for name in HELP]
        return f'There is no command "{word}".{nearest(word, known)} All: {" ".join(known)}'

    def _switch(self, word: str, rest: str) -> str:
        if not self.speaker.has_adapter:
            return "This is a whole model: there is no adapter to switch."
        if rest not in ("", "on", "off") or (word == "/adapter" and not rest):
            return f'"{word}" takes on or off.'
        if word == "/compare":
            self.compare = not self.compare if not rest else rest == "on"
            return "Both answers from now on." if self.compare else "One answer from now on."
        self.adapter, self.compare = rest == "on", False
        return f"Answers: {_WITH if self.adapter else _WITHOUT}."

    def tell(self, text: str) -> None:
        """Say something that is no answer."""
        print(visible(text), file=self.err, flush=True)

    # --- Answers ----------------------------------------------------------------------------------------------------
    @property
    def _asked(self) -> list[Turn]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def _streamed(self) -> Reply:
        is_terminal = self.out.isatty()

        def show(piece: str) -> None:
            # an answer must not steer the terminal; into a pipe it goes as it is
            self.out.write(visible(piece) if is_terminal else piece)
            self.out.flush()

        reply = self.speaker.answer(self._asked, self.sampling, adapter=self.adapter, on_text=show)
        self.out.write("\n")
        self.out.flush()
        return reply

    def _both(self) -> list[Reply]:
        if self.out.isatty():
            return self._columns()
        replies = []
        for on, name in ((True, _WITH), (False, _WITHOUT)):
            self.out.write(f"{name}:\n")
            reply = self.speaker.answer(self._asked, self.sampling, adapter=on, on_text=self.out.write)
            self.out.write("\n" if on is False else "\n\n")
            self.out.flush()
            replies.append(reply)
        return replies

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

                replies.append(self.speaker.answer(self._asked, self.sampling, adapter=on, on_text=show))
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
