import json

from sftcore import Example, Message, RowError, hookimpl, plugin
from sftcore.rows import read_messages, text_of, tools_of, value_of


@plugin
class FunctionCalls:
    """Rows with a query, the tools on offer, and the calls that answer it; the loss is on the calls."""

    query: str = "query"
    tools: str = "tools"
    answers: str = "answers"

    @hookimpl
    def detects(self, columns):
        return {self.query, self.tools, self.answers} <= set(columns)

    @hookimpl
    def make_formatter(self, columns):
        def read(row):
            turn = {"role": "assistant", "tool_calls": _calls(value_of(row, self.answers), self.answers)}
            return Example(
                prompt=[Message("user", text_of(row, self.query))],
                completion=read_messages([turn], self.answers),
                tools=tools_of(row, self.tools),
            )

        return read


def _calls(value, column):
    """Calls such as {"name": "add", "arguments": {"a": 1}}, in a list or in JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f'the column "{column}" is not valid JSON: {error}.', fix="Give a JSON list.") from None
    if not value:
        raise RowError(f'the column "{column}" holds no call.', fix="Drop the row.")
    return value
