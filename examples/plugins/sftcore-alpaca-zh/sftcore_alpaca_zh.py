from sftcore import Example, Message, hookimpl, plugin
from sftcore.rows import text_of


@plugin
class AlpacaZh:
    """Alpaca rows with Chinese keys."""

    question: str = "问题"
    answer: str = "回答"

    @hookimpl
    def detects(self, columns):
        return {self.question, self.answer} <= set(columns)

    @hookimpl
    def make_formatter(self, columns):
        def read(row):
            turns = {"user": text_of(row, self.question), "assistant": text_of(row, self.answer)}
            return Example(messages=[Message(role, text) for role, text in turns.items()])

        return read
