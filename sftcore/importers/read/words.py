"""The words of a shell script: commands with quotes, continuations and known variables resolved, and nothing run."""

from __future__ import annotations

import re

from attrs import define, field, frozen

_KEYWORDS = (
    "if",
    "then",
    "else",
    "elif",
    "do",
    "while",
    "until",
    "!",
    "time",
    "exec",
    "{",
    "}",
    "(",
    ")",
    "nohup",
    "sudo",
)
_OPEN, _CLOSE = ("if", "for", "while", "until", "case"), ("fi", "done", "esac")
_HARMLESS = (
    "set",
    "cd",
    "echo",
    "mkdir",
    "source",
    ".",
    "conda",
    "module",
    "ulimit",
    "sleep",
    "exit",
    "fi",
    "done",
    "esac",
    "unset",
    "pwd",
    "ls",
    "date",
    "printf",
    "wait",
    "shift",
    "trap",
    "true",
    "[",
    "[[",
    "read",
    "cat",
)
_EXPORTS = ("export", "declare", "local", "readonly", "typeset")
_NAME = re.compile(r"[A-Za-z_]\w*")
MOST_WORDS, LONGEST = 20_000, 100_000


@frozen
class Word:
    """One word: `known` is False where the shell would fill in what is not in the file; `quoted` is one in quotes."""

    text: str
    line: int
    known: bool = True
    quoted: bool = False


@define
class Command:
    """A command: the variables set before it, and its words."""

    assigned: list[tuple[str, Word]] = field(factory=list)
    words: list[Word] = field(factory=list)
    exported: bool = False

    @property
    def harmless(self) -> bool:
        """Whether the command says nothing of a training."""
        return self.words[0].text in _HARMLESS


def commands(text: str) -> list[Command]:
    """The commands of a script, in its order.

    >>> [[word.text for word in one.words] for one in commands("LR=1e-4\\nrun --lr $LR --out \\"$(pwd)/x\\"")]
    [[], ['run', '--lr', '1e-4', '--out', '$(pwd)/x']]
    """
    return _Lexer(text).run()


class _Lexer:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.variables: dict[str, Word] = {}
        self.lists: dict[str, list[Word]] = {}
        self.depth = self.num_words = 0
        self.heredocs: list[str] = []

    def run(self) -> list[Command]:
        found: list[Command] = []
        words: list[Word] = []
        while self.at < len(self.text) and self.num_words < MOST_WORDS:
            char = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self._skip(2)
            elif self.text.startswith("\\\r\n", self.at):
                self._skip(3)
            elif char in " \t\r":
                self._skip(1)
            elif char == "#":
                self._skip(len(self.text[self.at :].split("\n", 1)[0]))
            elif char in "\n;&|":
                self._skip(1)
                self._ended(words, found)
                words = []
                if char == "\n":
                    self._skip_heredocs()
            elif char in "<>" or re.match(r"[0-9]?[<>]", self.text[self.at :]):
                self._redirected()
            elif char in "()":
                self._skip(1)
                self._ended(words, found)
                words = []
            else:
                words += self._word(words)
                self.num_words += 1
        self._ended(words, found)
        return found

    def _skip(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.line += taken.count("\n")
        self.at += count
        return taken

    def _ended(self, words: list[Word], found: list[Command]) -> None:
        while words and words[0].text in _KEYWORDS + _OPEN + _CLOSE and not words[0].quoted:
            first = words.pop(0).text
            self.depth += (first in _OPEN) - (first in _CLOSE)
            if first == "for" and words:
                self.variables[words[0].text] = Word(f"${words[0].text}", words[0].line, known=False)
                words.clear()
        command = Command(exported=bool(words) and words[0].text in _EXPORTS)
        rest = words[1:] if command.exported else words
        while rest and (match := re.match(r"([A-Za-z_]\w*)=", rest[0].text)) and not rest[0].text.startswith("--"):
            word = rest.pop(0)
            value = Word(word.text[match.end() :], word.line, word.known, word.quoted)
            command.assigned.append((match[1], value))
        command.words = [] if command.exported else rest
        if not command.words:
            for name, value in command.assigned:
                again = self.depth > 0 and name in self.variables
                self.variables[name] = Word(f"${name}", value.line, known=False) if again else value
        if command.words or command.assigned:
            found.append(command)

    def _word(self, before: list[Word]) -> list[Word]:
        """The next word; an unquoted variable may be several."""
        line, text, known, quoted = self.line, "", True, False
        parts: list[Word] = []
        start = self.at
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t\r\n;&|<>()" and not (char == "(" and text.endswith("=") and not quoted):
                break
            if char == "(":
                self._array(text[:-1], line)
                return [Word(text, line)]
            if char == "'":
                end = self.text.find("'", self.at + 1)
                end = len(self.text) if end < 0 else end
                text += self._skip(end + 1 - self.at)[1:-1]
                quoted = quoted or self.at - start > 0
            elif char == '"':
                listed = re.match(r'"\$\{([A-Za-z_]\w*)\[@\]\}"', self.text[self.at :])
                if listed and listed[1] in self.lists:
                    self._skip(listed.end())
                    parts += self.lists[listed[1]]
                    continue
                inner, sure = self._double()
                text, known, quoted = text + inner, known and sure, True
            elif char == "\\":
                text += self._skip(2)[1:].replace("\n", "")
            elif char in "$`":
                named = re.match(r"\$\{([A-Za-z_]\w*)\[[@*]\]\}", self.text[self.at :])
                if named and named[1] in self.lists:
                    self._skip(named.end())
                    parts += self.lists[named[1]]
                    continue
                inner, sure = self._variable()
                pieces = inner.split() if sure else [inner]
                if len(pieces) > 1:
                    parts += [Word(text + pieces[0], line), *(Word(one, line) for one in pieces[1:-1])]
                    text = pieces[-1]
                else:
                    text += inner
                known = known and sure
            else:
                text += self._skip(1)
            if len(text) > LONGEST:
                known, text = False, text[:100] + "…"
        return [*parts, *([Word(text, line, known, quoted)] if text or quoted else [])]

    def _double(self) -> tuple[str, bool]:
        """What stands between double quotes."""
        self._skip(1)
        text, known = "", True
        while self.at < len(self.text) and self.text[self.at] != '"':
            char = self.text[self.at]
            if char == "\\":
                pair = self._skip(2)
                text += "" if pair == "\\\n" else pair[1:] if pair[1:] in ('"', "\\", "$", "`") else pair
            elif char in "$`":
                listed = re.match(r"\$\{([A-Za-z_]\w*)\[[@*]\]\}", self.text[self.at :])
                inner, sure = self._variable()
                if listed and listed[1] in self.lists:
                    inner, sure = " ".join(one.text for one in self.lists[listed[1]]), True
                text, known = text + inner, known and sure
            else:
                text += self._skip(1)
            if len(text) > LONGEST:
                known, text = False, text[:100] + "…"
        self._skip(1)
        return text, known

    def _variable(self) -> tuple[str, bool]:
        """What `$…` stands for, and whether that is known."""
        rest = self.text[self.at : self.at + 2000]
        if rest[0] == "`":
            end = self.text.find("`", self.at + 1)
            return self._skip((end if end > 0 else len(self.text)) + 1 - self.at)[:100], False
        if rest.startswith("$("):
            inner = self._skip(_closed(self.text, self.at + 1, "(", ")") - self.at)
            return " ".join(inner.split())[:100], False
        if match := re.match(r"\$\{([A-Za-z_]\w*)(?::?-([^${}`]*))?\}", rest):
            self._skip(match.end())
            word = self.variables.get(match[1])
            if word is not None:
                return word.text, word.known
            return (match[2].strip("\"'"), True) if match[2] is not None else (match[0], False)
        if rest.startswith("${"):
            end = _closed(self.text, self.at + 1, "{", "}")
            return self._skip(end - self.at)[:100], False
        if match := _NAME.match(rest[1:]):
            self._skip(1 + match.end())
            word = self.variables.get(match[0])
            return (word.text, word.known) if word else (f"${match[0]}", False)
        if len(rest) > 1 and rest[1] in "@*#?$!-0123456789":
            return self._skip(2), False
        return self._skip(1), True

    def _array(self, name: str, line: int) -> None:
        """The words of `NAME=( … )`."""
        end = _closed(self.text, self.at, "(", ")")
        inside = _Lexer(self.text[self.at + 1 : end - 1].replace("\n", " \\\n"))
        inside.line, inside.variables, inside.lists = self.line, self.variables, self.lists
        found: list[Word] = []
        while inside.at < len(inside.text):
            if inside.text.startswith("\\\n", inside.at):
                inside._skip(2)
            elif inside.text[inside.at] == "#":
                inside._skip(len(inside.text[inside.at :].split("\\\n", 1)[0]))
            elif inside.text[inside.at] in " \t\r;&|<>()":
                inside._skip(1)
            else:
                found += inside._word([])
        self.lists[name] = found
        self._skip(end - self.at)

    def _redirected(self) -> None:
        """Skip a redirection with its target; a here-document is skipped at the end of its line."""
        match = re.match(r"[0-9]?(?:<<-?|>>|[<>])&?[0-9-]?", self.text[self.at :])
        sign = self._skip(match.end() if match else 1)
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self._skip(1)
        if "&" in sign:
            return
        target = self._word([]) if self.at < len(self.text) and self.text[self.at] not in "\n;&|<>()" else []
        if "<<" in sign and target:
            self.heredocs.append(target[0].text)

    def _skip_heredocs(self) -> None:
        for end in self.heredocs:
            while self.at < len(self.text):
                line = self._skip(len(self.text[self.at :].split("\n", 1)[0]) + 1)
                if line.strip() == end:
                    break
        self.heredocs.clear()


def _closed(text: str, at: int, opening: str, closing: str) -> int:
    """The place behind the bracket that closes the one at `at`, or the end of the text."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i + 1
    return len(text)
