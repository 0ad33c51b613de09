from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError

from penstock.text.template_sandbox import RejectionError, compile_template, run_template


def rendered(source: str, **variables: Any) -> str:
    return run_template(compile_template(source, lambda: datetime(2031, 2, 3, 4, 5)), variables)


class TestDialect:
    def test_blocks_are_trimmed(self) -> None:
        assert rendered("a\n  {% if true %}\n  b\n  {% endif %}\nc\n") == "a\n  b\nc"

    def test_loop_controls(self) -> None:
        source = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}"
        source += "{{ i }}{% endfor %}"
        assert rendered(source) == "023"

    def test_loop_variables(self) -> None:
        source = (
            "{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ loop.nextitem }}{{ loop.last }} {% endfor %}"
        )
        assert rendered(source, xs=["a", "b"]) == "1/2abFalse 2/2bTrue "
        assert rendered(source.replace("xs", "xs | select"), xs=["a", "", "b"]) == "1/2abFalse 2/2bTrue "

    def test_loops_over_nothing(self) -> None:
        assert rendered("{% for x in missing %}x{% else %}none{% endfor %}") == "none"
        assert rendered("{% for x in xs if x > 5 %}x{% else %}none{% endfor %}", xs=[1]) == "none"
        with pytest.raises(TypeError, match="not iterable"):
            rendered("{% for x in none %}x{% endfor %}")

    def test_recursive_loop(self) -> None:
        source = "{% for x in tree recursive %}{{ x.name }}{{ loop(x.kids) if x.kids }}{% endfor %}"
        assert rendered(source, tree=[{"name": "a", "kids": [{"name": "b"}, {"name": "c"}]}]) == "abc"

    def test_generation_block(self) -> None:
        source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
        assert rendered(source) == "21"

    def test_tojson(self) -> None:
        assert rendered("{{ x | tojson }}", x={"b": "<é>'", "a": None}) == '{"b": "<é>\'", "a": null}'
        assert rendered("{{ x | tojson(indent=1, sort_keys=true) }}", x={"b": 1, "a": 2}) == '{\n "a": 2,\n "b": 1\n}'
        assert rendered("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'
        assert rendered("{{ [1, 2] | tojson(separators=(',', ':')) }}") == "[1,2]"

    def test_strftime_now(self) -> None:
        assert rendered("{{ strftime_now('%d %b %Y %H:%M') }}") == "03 Feb 2031 04:05"

    def test_raise_exception(self) -> None:
        with pytest.raises(RejectionError, match="no such role"):
            rendered("{{ raise_exception('no such role') }}")

    def test_dict_and_namespace(self) -> None:
        assert rendered("{{ dict(a=1) }}{{ dict.fromkeys('ab', 0) }}") == "{'a': 1}{'a': 0, 'b': 0}"
        assert rendered("{% set n = namespace(self=1) %}{% set n.x = n.self + 1 %}{{ n.x }}") == "2"

    def test_undefined(self) -> None:
        assert rendered("{{ missing }}{{ 'yes' if missing is defined else 'no' }}") == "no"
        with pytest.raises(UndefinedError, match="'missing' is undefined"):
            rendered("{{ missing.attribute }}")

    def test_unknown_names(self) -> None:
        with pytest.raises(TemplateSyntaxError, match="No filter named 'shout'"):
            rendered("{{ 'a' | shout }}")


class TestSandbox:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ '{0.__class__.x}'.format(1) }}",
            "{{ xs.append(1) }}",
            "{{ d.update(a=1) }}",
            "{{ d['__class__'].mro() }}",
            "{{ strftime_now.__globals__['json'] }}",
            "{{ cycler.__init__.__globals__.os }}",
            "{% set n = namespace(_private=1) %}",
            "{% set n = namespace() %}{% set n._private = 1 %}",
        ],
    )
    def test_no_way_out(self, source: str) -> None:
        with pytest.raises(SecurityError):
            rendered(source, xs=[], d={})

    def test_no_methods_of_the_type_dict(self) -> None:
        with pytest.raises(UndefinedError):
            rendered("{{ dict.update(d, a=1) }}", d={})

    def test_no_files(self) -> None:
        with pytest.raises(TypeError, match="no loader"):
            rendered("{% include '/etc/passwd' %}")


class TestLimits:
    @pytest.mark.parametrize("inner", ["range(999)", "range(999) | map('string')", "[0] * 999", "range(9) | batch(1)"])
    def test_steps(self, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
        monkeypatch.setattr("penstock.text.template_sandbox.STEP_BUDGET", 100_000)
        with pytest.raises(SecurityError, match="more than 100,000 steps"):
            rendered("{% for i in range(99999) %}{% for j in " + inner + " %}{% endfor %}{% endfor %}")

    def test_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.text.template_sandbox.CALL_STEPS", 10_000)
        with pytest.raises(SecurityError, match="steps"):
            rendered("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}")

    def test_constant_lists_count_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.text.template_sandbox.STEP_BUDGET", 5)
        with pytest.raises(SecurityError, match="steps"):
            rendered("{% for i in [1, 2] %}{% for j in [1, 2] %}{% endfor %}{% endfor %}")
        assert rendered("{% for i in [1, 2] %}{{ i }}{% endfor %}") == "12"

    def test_budget_is_of_one_rendering(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.text.template_sandbox.STEP_BUDGET", 1500)
        template = compile_template("{% for i in range(999) %}{% endfor %}", datetime.now)
        for _ in range(2):
            assert run_template(template, {}) == ""

    def test_ranges(self) -> None:
        with pytest.raises(OverflowError, match="Range too big"):
            rendered("{% for i in range(100001) %}{% endfor %}")

    @pytest.mark.parametrize(
        "product", ["'ab' * 1000000", "1000001 * 'a'", "[0] * 10000000", "2 ** 2000000", "(2 ** 900000) ** 2"]
    )
    def test_products(self, product: str) -> None:
        with pytest.raises(SecurityError, match="is too large"):
            rendered("{{ (" + product + ") | length }}")

    def test_ordinary_products(self) -> None:
        assert rendered("{{ '-' * 3 }} {{ 2 * 3 }} {{ 2 ** 10 }} {{ 1.5 * 2 }}") == "--- 6 1024 3.0"
        assert rendered("{{ 2 * [1] }} {{ 'a' * -1 }}") == "[1, 1] "

    def test_recursion(self) -> None:
        with pytest.raises(RecursionError):
            rendered("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
