from __future__ import annotations

import time

import pytest

from nybble.errors import NybbleError
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.render import framed

resource = pytest.importorskip("resource")  # not on Windows

TEXT = Document(id="t", category="text", text="some text to frame")
BIG = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"

HOSTILE = {
    "syntax error": "{% for m in messages %}{{ m.content }}",
    "unknown filter": "{{ messages | nosuchfilter }}",
    "unknown tag": "{% include 'x' %}{% nosuchtag %}",
    "too long": "x" * 300_000,
    "endless macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "doubling macro": "{% macro f(n) %}{{ f(n+1) }}{{ f(n+1) }}{% endmacro %}{{ f(0) }}",
    "recursive block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ messages | attr('__class__') }}",
    "class by item": "{{ messages['__class__']['__base__']['__subclasses__']() }}",
    "globals of a function": "{{ raise_exception.__globals__['os'].system('true') }}",
    "globals by format": "{{ '{0.__globals__[os]}'.format(raise_exception)[0:3].x.y }}",
    "environment": "{{ self.environment.filters.clear() }}",
    "changed messages": "{{ messages.append(1) }}",
    "changed message": "{{ messages[0].update({'content': ''}) }}",
    "included file": "{% include '/etc/passwd' %}",
    "huge range": "{{ range(1000000000) | list }}",
    "nested loops": (
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    ),
    "filtered loops": (
        "{% for a in range(90000) %}{% for b in range(90000) if false %}{% endfor %}{% endfor %}"
    ),
    "recursive loop": (
        "{% for a in [range(9)] recursive %}{{ loop([range(9), range(9)]) }}{% endfor %}"
    ),
    "doubled by tilde": BIG + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "doubled by plus": BIG + "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "doubled by join": BIG + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}{{ ns.x }}",
    "doubled by method": BIG + "{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}{{ ns.x }}",
    "doubled by replace": BIG + "{% set ns.x = ns.x.replace('a', 'aa') * 2 %}{% endfor %}",
    "doubled by filter": BIG + "{% set ns.x = ns.x | replace('ab', 'abab') %}{% endfor %}",
    "doubled by format": BIG + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubled list": BIG + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "doubled by capture": BIG + "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}"
    "{% endfor %}",
    "times": "{{ 'a' * 1000000000 }}",
    "times list": "{{ [0] * 1000000000 }}",
    "swapped times": "{{ 1000000000 * 'a' }}",
    "big power": "{{ 10 ** 1000000000 }}",
    "tower": "{{ 9 ** (9 ** 9) }}",
    "big product": "{% set ns = namespace(x=9) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "wide percent": "{{ '%1000000000d' % 1 }}",
    "wide star": "{{ '%*d' % (1000000000, 1) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "wide center": "{{ 'a'.center(1000000000) }}",
    "center filter": "{{ 'a' | center(1000000000) }}",
    "wide ljust": "{{ 'a'.ljust(1000000000) }}",
    "wide zfill": "{{ 'a'.zfill(1000000000) }}",
    "wide indent": "{{ 'a\nb' | indent(1000000000) }}",
    "wide json": "{{ [1] | tojson(indent=1000000000) }}",
    "precise round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "wide date": "{{ strftime_now('%1000000000Y') }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "cycle": "{{ {'a': messages} | nosuch }}",
    "divided": "{{ 1 / 0 }}",
    "deep source": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "deep list": "{{ " + "[" * 3_000 + "]" * 3_000 + " }}",
    "half surrogate": "{{ '\\ud800' }}{{ messages[1].content }}",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_template_is_a_clear_error(name: str) -> None:
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # With the answer printed at the end, a template that got through would be accepted.
    source = HOSTILE[name] + "{{ messages[1].content }}"
    with pytest.raises(NybbleError, match="chat template") as caught:
        framed(TEXT, source, bos="", eos="", request="Write.")
    assert len(str(caught.value)) < 1500
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


@pytest.mark.parametrize("source", ["", "  \n"])
def test_empty_template(source: str) -> None:
    with pytest.raises(NybbleError, match="empty"):
        framed(TEXT, source, bos="", eos="", request="Write.")


def test_messages_are_not_changed_by_a_template() -> None:
    document = Document(id="t", category="chat", messages=({"role": "user", "content": "x"},))
    with pytest.raises(NybbleError):
        framed(document, "{{ messages[0].clear() }}", bos="", eos="", request="")
    assert document.messages == ({"role": "user", "content": "x"},)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ {'b': 1, 'a': 'ä<'} | tojson }}", '{"b": 1, "a": "ä<"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user,assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages[::-1][0].role }}", "assistant"),
        ("{{ ' a '.strip() + 'x,y'.split(',')[1] }}", "ay"),
        ("{{ '%s-%s' | string | replace('%s', 'b') }}", "b-b"),
        ("{{ '%s-%02d' % ('a', 3) }}", "a-03"),
        ("{{ '{}-{:>3}'.format('a', 1) }}", "a-  1"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in [1, 2, 3] if i > 1 %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
            "1/2 2/2 ",
        ),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') ~ m(m('b')) }}", "[a][[b]]"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ strftime_now('%d %b %Y') }}", "01 Jan 2025"),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ 2 * 3 }}{{ 2 ** 3 }}", "TrueFalse68"),
        ("{{ undefined_name }}{{ messages[0].nothing or 'none' }}", "none"),
        ("{{ dict(a=1).items() | list }}{{ {'x': 2} | dictsort }}", "[('a', 1)][('x', 2)]"),
    ],
)
def test_ordinary_template_code_works(source: str, expected: str) -> None:
    template = "{{ messages[1].content }}|" + source
    rendered = framed(TEXT, template, bos="", eos="", request="Write.")
    assert rendered.text == "some text to frame|" + expected
