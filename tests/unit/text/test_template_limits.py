"""A hostile template or hostile messages cost little: every attack ends in an error soon, with little memory."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import TemplateError
from serving.text import template_meter
from serving.text.chat_template import ChatTemplate

BIG = "{% set big = 'x' * 1000000 %}"
DAG = "{% set ns = namespace(a=[1]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
TWIN = "{% set nt = namespace(a=[1]) %}{% for i in range(40) %}{% set nt.a = [nt.a, nt.a] %}{% endfor %}"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"

ATTACKS = [
    # loops
    "{% for x in range(10**9) %}{% endfor %}",
    "{% for x in range(100000) %}{% for y in range(100000) %}{% endfor %}{% endfor %}",
    "{% for x in range(100000) %}{% for y in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for x in range(100000) %}{% if x in range(100000)|list %}{% endif %}{% endfor %}",
    "{% for x in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    "{% for a in [1,2] recursive %}{% if loop.depth < 60 %}{{ loop([1,2]) }}{% endif %}{% endfor %}",
    "{% for x in range(100000) %}{% set y = range(100000)|list|length %}{% endfor %}",
    "{% for x in range(100000) %}{% set y = range(100000)|map('string')|join|length %}{% endfor %}",
    "{% for x in range(100000) %}{{ 'abcdefghij' * 1000 }}{% endfor %}",
    "{% for x in range(100000) %}{% set y %}{% for z in range(100000) %}{{ z }}{% endfor %}{% endset %}{% endfor %}",
    # recursion
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{% macro f(n) %}{% call g(n) %}{% endcall %}{% endmacro %}{% macro g(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% macro f(n) %}x{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    # large texts at once
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ (1, 2) * 10**9 }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.rjust(10**10) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ 'x\\n\\n\\ny' | indent(10000000000) }}",
    BIG + "{{ ('a\\n' * 1000000) | indent(big) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1.5 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ '{0:>{1}}'.format('a', 1000000000) }}",
    BIG + "{{ ('%s' * 100000) % ((big,) * 100000) }}",
    BIG + "{{ ('{0}' * 100000).format(big) }}",
    BIG + "{{ ('%(a)s' * 100000) % {'a': big} }}",
    BIG + "{{ big.replace('x', big) }}",
    BIG + "{{ big | replace('x', big) }}",
    BIG + "{{ big.replace('', big) }}",
    BIG + "{{ big.join('x' * 1000000) }}",
    BIG + "{{ range(100000) | map('string') | join(big) }}",
    BIG + "{{ ([big] * 100000) | join }}",
    BIG + "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    BIG + "{{ big.translate({120: big}) }}",
    "{{ (5).to_bytes(10000000000, 'big') }}",
    "{{ {'a': 1} | tojson(indent=1000000000) }}",
    BIG + "{{ (range(100000) | list) | tojson(indent=big) }}",
    BIG + "{{ (range(100000) | list) | tojson(separators=(big, big)) }}",
    "{{ range(100) | batch(1000000000, 'x') | list }}",
    "{{ range(100) | slice(1000000000) | list }}",
    # growth step by step
    DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    DOUBLE + "{% set ns.x = ns.x * 2 %}{% endfor %}",
    DOUBLE + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    DOUBLE + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    DOUBLE + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    DOUBLE + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    DOUBLE + "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}"
    + BIG
    + "{% for i in range(100000) %}{% set ns.x = ns.x + [big ~ i] %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}"
    + BIG
    + "{% for i in range(100000) %}{% set ns.x = ns.x + [big[1:]] %}{% endfor %}",
    "{{ range(100000) | map('center', 100000) | list | length }}",
    # values that hold the same value many times
    DAG + "{{ ns.a }}",
    DAG + "{{ ns.a | tojson }}",
    DAG + "{{ ns.a | string }}",
    DAG + "{{ ns.a ~ '' }}",
    DAG + TWIN + "{{ ns.a == nt.a }}",
    "{% set ns = namespace(a=(1,)) %}{% for i in range(40) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
    "{% set ns = namespace(a={}) %}{% for i in range(40) %}{% set ns.a = dict(x=ns.a, y=ns.a) %}{% endfor %}{{ ns.a }}",
    "{{ (range(100000) | map('list') ) | list }}",
    "{{ ([range(1000) | list] * 100000) | sum(start=[]) }}",
    # numbers
    "{{ 10 ** 10000000000 }}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 1.5 | round(1000000000, 'ceil') }}",
    # the source itself
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for x in y %}" * 50 + "{% endfor %}" * 50,
    "x" * 2_000_000,
    "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "{% include 'other' %}",
    "{% import 'other' as other %}",
    "{% extends 'other' %}",
    "{{ '<a' * 100000 | urlize }}",
]

MAX_S = 5.0
"""Ten times what an attack costs on a quiet machine: without a limit it would be hours."""
MAX_MEMORY_KIB = 400 * 1024


@pytest.fixture
def short_limit(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time for every template, so that the suite does not take minutes."""
    if not full:
        monkeypatch.setattr(template_meter, "TIME_LIMIT_S", 0.2)


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize("source", ATTACKS)
def test_an_attack_on_time_or_memory_is_refused(source: str) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, {}).render([{"role": "user", "content": "hello"}])
    assert time.thread_time() - started_s < MAX_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < MAX_MEMORY_KIB
    assert caught.value.message.startswith("Template error: ")
    assert len(caught.value.message) < 600


def test_other_threads_go_on_while_a_template_runs_away() -> None:
    template = ChatTemplate(
        "{% for x in range(100000) %}{% for y in range(100000) %}{% endfor %}{% endfor %}", {}
    )
    quick = ChatTemplate("{{ messages[0].content }}", {})
    message = [{"role": "user", "content": "hello"}]
    assert quick.render(message) == "hello"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(template.render, message)
        longest_s = 0.0
        for _ in range(20):
            started_s = time.monotonic()
            assert quick.render(message) == "hello"
            longest_s = max(longest_s, time.monotonic() - started_s)
        assert not slow.done()
        with pytest.raises(TemplateError, match="takes more than"):
            slow.result()
    assert longest_s < 0.5


def test_a_long_chat_is_within_the_limits() -> None:
    source = (
        "{% set ns = namespace(all='') %}{% for m in messages %}"
        "{% set ns.all = ns.all + m.role ~ ': ' ~ m.content %}{% endfor %}{{ ns.all }}"
    )
    messages = [{"role": "user", "content": "word " * 100} for _ in range(1000)]
    rendered = ChatTemplate(source, {}).render(messages)
    assert rendered == "".join(f"{m['role']}: {m['content']}" for m in messages)
