"""Chat templates that would take all time or memory, or reach out of their sandbox: each ends in an error, soon."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import string
import threading
import time

import pytest

from sftcore.chat.sandbox import limits
from sftcore.chat.template import ChatTemplate, SpecialTexts
from sftcore.config.settings.templates import MAX_SOURCE
from sftcore.core.errors import ModelError, RowError, SFTCoreError

TURNS = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]
SPECIAL = SpecialTexts(["<|im_end|>"], [], "<|im_end|>")
LETTERS = string.ascii_lowercase


def render(source: str, turns=TURNS) -> str:
    return ChatTemplate(source, {}, SPECIAL).render(turns, None, {}, False)


def chain(make) -> str:
    """`{% set b = … a … %}{% set c = … b … %}` down to z."""
    return "".join(f"{{% set {new} = {make(old)} %}}" for old, new in itertools.pairwise(LETTERS))


WIDE = "{{% set x = {} %}}{{{{ [{}] }}}}"
INSIDE = "{{% set n = namespace(x='a' * 16000000) %}}{{% set f = {} %}}{{{{ USE }}}}"

LARGE = {
    "a text times a number": "{{ 'x' * 10 ** 10 }}",
    "the same, known when compiled": "{% if false %}{{ 'x' * 10 ** 10 }}{% endif %}{{ 'x' * 9999999999 }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(999) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a chain of names": "{% set a = 'abcdefghij' %}" + chain(lambda name: " + ".join([name] * 10)) + "{{ z }}",
    "lists of lists": "{% set a = [1] %}" + chain(lambda name: f"[{', '.join([name] * 9)}]") + "{{ z }}",
    "lists added": "{% set a = [1] %}" + chain(lambda name: " + ".join([name] * 9)) + "{{ z }}",
    "a list times a number": "{{ ([1] * 100000)|length * 0 }}{{ [messages] * 10 ** 9 }}",
    "width of a filter": "{{ 'x'|center(10 ** 9) }}",
    "width of a method": "{{ 'x'.center(1000000000) }}",
    "width by attr": "{{ ('x'|attr('ljust'))(1000000000) }}",
    "width of %": "{{ '%1000000000d' % 1 }}",
    "width of % as a value": "{{ '%*d' % (1000000000, 1) }}",
    "width of format": "{{ '{:>1000000000}'.format(1) }}",
    "width of format as a value": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "width of format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "replace": "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "the filter replace": "{{ ('a' * 10000)|replace('a', 'b' * 10000) }}",
    "join": "{{ ('b' * 10000).join(['a' * 1000] * 10000) }}",
    "the filter join": "{{ (['a' * 1000] * 10000)|join('b' * 10000) }}",
    "indent of JSON": "{{ [1, [2]]|tojson(indent=1000000000) }}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "much written": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "much captured": "{% set x %}{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "much in a macro": "{% macro f() %}{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "JSON of JSON": "{{ messages[0].content" + "|tojson" * 40 + " }}",
    "JSON of JSON, known when compiled": "{% if messages %}{{ '\"'" + "|tojson" * 30 + " }}{% endif %}",
    "lists as texts": "{{ messages[0].content" + "|list|string" * 16 + " }}",
    "escaped again": "{% set x = '&' * 8000000 %}{{ x" + "|forceescape" * 20 + " }}",
    "digits without end": "{% set a = ('f' * 9999999)|int(0, 16) %}{{ a // ((a + 1) // 2 ** 99) }}",
    "a set of characters": "{{ ('a' * 8000000).strip('b' * 8000000 ~ 'a') }}",
    "the filter trim": "{{ ('a' * 8000000)|trim('b' * 8000000 ~ 'a') }}",
    "a set by attr": "{{ (('a' * 8000000)|attr('lstrip'))('b' * 8000000 ~ 'a') }}",
    "a search from behind": "{{ ('a' * 8000000).rfind('ab' ~ 'a' * 4000000) }}",
    "width of % behind a name": "{{ '%(a(b)c)1000000000d' % {'a(b)c': 1} }}",
    "precision of %": "{{ '%.1000000000f' % 1 }}",
    "indent of other line ends": "{{ ('\r' * 8000000)|indent('x' * 10000, false, true) }}",
    "a date": "{{ strftime_now('%c' * 8000000) }}",
    "tuples in tuples": "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = (n.x,) %}{% endfor %}",
    "one text many times": WIDE.format("'a' * 9999999", "range(99999)|map(attribute='no', default=x)|list"),
    "a format that looks inside": INSIDE.format("'{0.x}{0.x}' * 999").replace("USE", "f.format(n)"),
    "joined by attribute": INSIDE.format("[n] * 9999").replace("USE", "f|join(attribute='x')"),
    "sorted by attribute": INSIDE.format("[n] * 9999").replace("USE", "f|sort(attribute='x')"),
    "small texts in a list": (
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = n.x + ['x' * 3000 + 'x'] * 99 %}"
        "{% endfor %}"
    ),
    "sorted by a loop's attribute": (
        "{% for m in ['a' * 9999999, 'b'] %}{{ ([loop] * 9999)|sort(attribute='previtem') }}{% endfor %}"
    ),
    "the default width of tabs": "{{ ('\t' * 16000000).expandtabs() }}",
    "given as an argument": "{% macro f(x) %}{{ x ~ x ~ x ~ x ~ x ~ x ~ x }}{% endmacro %}{{ f('a' * 9999999) }}",
}


@pytest.mark.parametrize("source", LARGE.values(), ids=LARGE)
def test_what_would_grow_without_end_is_stopped_before_it_is_made(source):
    start = time.process_time()
    with pytest.raises(ModelError, match="the chat template was stopped: it makes "):
        render(source)
    assert time.process_time() - start < 2


COPIES = {
    "pieces of texts": "x.split('b')",
    "parts of texts": "x.partition('b')",
    "pieces by attr": "(x|attr('split'))('b')",
    "ends of texts": "x[1:]",
    "stripped texts": "x.strip('b')",
    "trimmed texts": "x|trim('b')",
    "small letters": "x|lower",
    "marked as safe": "x|safe",
    "joined": "x ~ 'c'",
    "added": "x + 'c'",
    "with what is not constant": "x + x",
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_of_a_large_text_are_counted_one_by_one(copy, monkeypatch):
    monkeypatch.setattr(limits, "TOTAL", 200 * 2**20)
    monkeypatch.setattr(limits.Rendering, "_left", 200 * 2**20)
    source = "{% set x = 'a' * 9999999 + 'b' %}{{ [" + ", ".join([f"({copy})|length"] * 99) + "] }}"
    with pytest.raises(ModelError, match="it makes more than 200 MiB in all its steps together"):
        render(source)


FOREVER = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "sums of lists": "{{ range(99999)|map('string')|map('list')|sum(start=[]) }}",
    "texts compared": (
        "{% set x = 'a' * 16000000 %}{% set y = 'a' * 15999999 + 'a' %}{{ [" + ", ".join(["x == y"] * 9999) + "] }}"
    ),
    "texts looked for": (
        "{% set x = 'a' * 16000000 %}{{ [" + ", ".join(["x is upper, 'b' in x, x.find('b')"] * 3000) + "] }}"
    ),
    "keys looked up": "{% set m, t = {}, (1, 2) * 99999 %}{{ [" + ", ".join(["m[t]"] * 9999) + "] }}",
    "keys asked for": "{% set m, t = {}, (1, 2) * 99999 %}{{ [" + ", ".join(["m.get(t)"] * 9999) + "] }}",
    "loops that leave all out": (
        "{% set x = [0] * 999999 %}{% for i in range(99999) %}"
        + "{% for j in x if false %}{% endfor %}" * 3
        + "{% endfor %}"
    ),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", FOREVER.values(), ids=FOREVER)
def test_what_would_take_forever_is_stopped(source, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    start = time.process_time()
    with pytest.raises(ModelError, match=r"was stopped: it took longer than 0\.3 s"):
        render(source)
    assert time.process_time() - start < 4
    assert render("{{ messages[0].content }}") == "say hello"


KEPT = {
    "large texts": "{% set n.p = namespace(before=n.p, text='x' * (4000000 - i)) %}",
    "texts of medium size": "{% set n.p = namespace(before=n.p, text='x' * 20000) %}",
    "small texts": "{% set t = m + 'x' %}{% set n.p = namespace(before=n.p, text=t) %}",
    "small texts in a macro": (
        "{% macro f() %}{% for j in range(99999) %}{{ m + 'x' }}{% endfor %}{% endmacro %}{{ f() }}"
    ),
    "lists": "{% set n.p = namespace(before=n.p, list=[1] * 9999) %}",
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_what_would_take_all_memory_step_by_step_is_stopped(kept, monkeypatch):
    monkeypatch.setattr(limits, "TOTAL", 100 * 2**20)
    monkeypatch.setattr(limits.Rendering, "_left", 100 * 2**20)
    monkeypatch.setattr(limits, "SECONDS", 60)
    source = "{% set n, m = namespace(p=none), 'x' * 3000 %}{% for i in range(99999) %}" + kept + "{% endfor %}"
    with pytest.raises(ModelError, match="it makes more than 100 MiB in all its steps together"):
        render(source)


@pytest.mark.parametrize("name", ["batch(1)", "slice(1)", "map('upper')", "select", "unique"])
def test_a_tower_of_lazy_filters_does_not_overflow_the_stack(name):
    """Python iterates and frees generators inside generators by recursion, without a limit."""
    tower = f"{{% set n = namespace(x=['a']) %}}{{% for i in range(40000) %}}{{% set n.x = n.x|{name} %}}{{% endfor %}}"
    assert render(tower + "done") == "done"


def test_markers_do_not_read_what_was_never_written():
    """Each marker joins all that stands before it, which may be one long text a thousand times."""
    source = (
        "{% set x = 'x' * 16000000 %}{% for i in range(999) %}{{ x }}{% endfor %}{% generation %}a{% endgeneration %}"
    )
    with pytest.raises(ModelError, match="it makes a conversation of more than"):
        ChatTemplate(source, {}, SPECIAL).render_marked(TURNS, None, {})


COMPILED = {
    "conditions": "{%if x%}{%endif%}",
    "names in conditions": "{%if x%}{%set NAME=1%}{%endif%}",
    "loops": "{%for i in x%}{%endfor%}",
    "macros": "{%macro NAME(x)%}{%endmacro%}",
    "an open comment": "{#",
    "filters": "{{x|e|e|e|e|e}}",
}


@pytest.mark.parametrize("piece", COMPILED.values(), ids=COMPILED)
def test_the_longest_templates_are_compiled_or_refused_soon(piece):
    """Jinja compiles some of them in a time that grows with the square of their length, so that it is limited."""
    pieces = [piece.replace("NAME", f"a{i}") for i in range(MAX_SOURCE // len(piece))]
    start = time.process_time()
    with contextlib.suppress(ModelError):
        ChatTemplate("".join(pieces)[:MAX_SOURCE], {}, SPECIAL)
    assert time.process_time() - start < 10


def test_methods_and_filters_of_texts_give_what_they_give_in_jinja():
    source = (
        "{{ ' x '.strip() }}|{{ 'xxa'.lstrip('x') }}|{{ ' a '|trim }}|{{ 'xax'|trim('x') }}|{{ 5|trim }}"
        "|{{ none|trim }}|{{ nope|trim }}|{{ 'a b'.split(' ')[-1] }}|{{ 'a,b'.rsplit(',', 1) }}"
        "|{{ '{{}}{}'.format(1) }}|{{ '**%s** %5.2f' % ('a', 1) }}|{{ ['a']|map('upper')|select|list }}"
        "|{{ ('ab'|list, '0x1f'|int(0, 16)) }}|{{ 'abc'.replace('b', 'xx') }}|{{ 'abc'|replace('b', 'xx') }}"
        "|{{ messages|join(', ', attribute='role') }}|{{ ['a', 1, none]|reverse|join('-') }}"
        "|{{ [[1], [2]]|sum(start=[]) }}|{{ messages|map(attribute='content')|map('length')|sum }}"
        "|{{ 'a'.center(5) }}|{{ 'a'|center(5) }}|{{ '7'.zfill(3) }}|{{ 'a\tb'.expandtabs(4) }}|{{ 'a\nb'|indent(2) }}"
        "|{{ messages|tojson(indent=2, separators=(',', ':')) }}|{{ messages[0]|items|list }}"
        "|{{ messages[0].get('role') }}"
        "|{{ 'a-b-c'.rsplit('-', 1) }}|{{ 'a-b'.partition('-') }}|{{ 'Ab'|lower }}|{{ 'Ab'|upper }}"
        "|{{ '{a}'.format(a=1) }}"
        "|{{ messages|sort(attribute='content')|map(attribute='role')|list }}|{{ 'a' ~ 1 ~ none }}|{{ 'ab' * 3 }}"
        "|{% for m in messages if m.role is eq 'user' %}{{ loop.index0 % 2 }}{{ loop.last }}"
        "{{ m['content'][1:] }}{% endfor %}"
        "|{% macro f(x, y=2) %}{{ x + '!' }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('a', y=3) }}"
        "|{{ 2 ** 10 }}|{{ 7 % 4 }}"
    )
    from transformers.utils.chat_template_utils import _compile_jinja_template

    assert render(source) == _compile_jinja_template(source).render(messages=TURNS)


def test_another_thread_is_stopped_too(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    found: list[SFTCoreError] = []

    def run() -> None:
        try:
            render(FOREVER["loops in loops"])
        except SFTCoreError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert "it took longer" in str(found[0])


def _in_a_worker(queue) -> None:
    limits.SECONDS = 0.3
    try:
        render(FOREVER["loops in loops"])
    except SFTCoreError as error:
        queue.put(str(error))


def test_a_forked_worker_is_stopped_too():
    """Whatever the parent process has rendered before."""
    render("{{ messages[0].content }}")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_in_a_worker, args=(queue,))
    worker.start()
    assert "it took longer" in queue.get(timeout=60)
    worker.join()


ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "by attr": "{{ ''|attr('__class__') }}",
    "by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "by map": "{{ ['']|map(attribute='__class__')|list|first|upper }}{{ ''.__class__.x }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "the data": "{{ messages.clear() }}",
    "the data, by a filter that adds to what it is given": "{{ messages|indent }}",
    "codes": "{{ raise_exception.__code__.co_consts }}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_nothing_outside_of_the_sandbox_is_reached(source):
    try:
        written = render(source)
    except (RowError, ModelError):
        written = ""
    assert written == ""
    assert TURNS == [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]


BROKEN = {
    "a loop over nothing": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "wide": "{{ " + " + ".join(["1"] * 50_000) + " }}",
    "braces": "{" * 200_000,
    "blocks": "{% block a %}{% endblock %}{{ self.a() }}",
    "long": "x" * (MAX_SOURCE + 1),
    "an unknown filter": "{{ 'a'|nothing }}",
    "unnamed arguments": "{% macro f() %}{{ varargs }}{% endmacro %}",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_what_is_no_template_is_refused_when_it_is_compiled(source):
    with pytest.raises(ModelError, match="the chat template cannot be used"):
        ChatTemplate(source, {}, SPECIAL)


def test_a_long_conversation_is_no_attack():
    """Two million characters in 2,000 turns, on a template that joins names of its own."""
    turns = [{"role": "assistant" if i % 2 else "user", "content": "word " * 200} for i in range(2000)]
    source = (
        "{% for m in messages %}{% set text = m.content | trim %}{% set whole = '<' + m.role + '>' + text %}"
        "{{ whole + '</s>' }}{{ '\n' if loop.index0 % 2 }}{% endfor %}"
    )
    expected = "".join(
        f"<{turn['role']}>{turn['content'].strip()}</s>" + ("\n" if i % 2 else "") for i, turn in enumerate(turns)
    )
    assert render(source, turns) == expected


@pytest.mark.parametrize("source", [LARGE["a text times a number"], FOREVER["loops in loops"]])
def test_no_way_that_goes_through_transformers_is_without_limits(source, monkeypatch, tokenizer):
    """`sftcore chat`, `parity` and the helper of TRL's name render by transformers' own function."""
    import copy

    from sftcore import apply_chat_template
    from sftcore.chat.served.record import render as render_record
    from sftcore.tools.chat_model import ChatModel, Sampling

    monkeypatch.setattr(limits, "SECONDS", 0.3)
    hostile = copy.deepcopy(tokenizer)
    hostile.chat_template = source
    with pytest.raises(ModelError, match="was stopped"):
        ChatModel(None, hostile, 100, False).answer(TURNS[:1], Sampling())
    with pytest.raises(ModelError, match="was stopped"):
        render_record(hostile)
    with pytest.raises(ModelError, match="was stopped"):
        apply_chat_template({"messages": TURNS}, hostile)


def test_the_row_on_which_a_template_was_stopped_is_named_by_its_file(model_folder, tmp_path):
    from rich.console import Console

    from sftcore.config.recipe import load_recipe
    from sftcore.train.run import check_recipe, run_recipe

    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% if 'boom' in m.content %}{{ 'x' * 10 ** 9 }}{% endif %}{% endfor %}"
    )
    for name, words in {"a": ["hello"] * 3, "b": ["hello", "boom"]}.items():
        rows = [{"messages": [TURNS[0], {"role": "assistant", "content": word}]} for word in words]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model={model_folder}", f"data={tmp_path}/*.jsonl", f"chat_template_path={template}", "use_cpu=true"]
    with pytest.raises(ModelError, match=r"b\.jsonl row 1: the chat template was stopped: it makes more than"):
        run_recipe(check_recipe(load_recipe(None, [*words, f"output_dir={tmp_path / 'out'}"])), Console(quiet=True))
