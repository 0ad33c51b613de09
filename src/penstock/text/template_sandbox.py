"""The Jinja dialect of chat templates, in a sandbox with limits.

`transformers` defines the dialect (its guide "Chat templates" and `utils/chat_template_utils.py`): blocks trimmed, loop
controls, `{% generation %}`, a plain `tojson`, `raise_exception` and `strftime_now`.

A template is code from a stranger. Jinja's immutable sandbox keeps it from the interpreter and from its arguments; the
limits here keep it from running on and on, which Jinja leaves to its users. They stop a runaway, not every malice: a
template that doubles a string in a loop can still fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from jinja2.parser import Parser
    from jinja2.runtime import Context, Macro

STEP_BUDGET = 10_000_000  # loop turns of one rendering: some seconds
CALL_STEPS = 10  # what a call of a function or macro counts for
SIZE_LIMIT = 1_000_000  # characters, items or bits that one multiplication may make

_steps_left: ContextVar[int] = ContextVar("chat template steps left", default=STEP_BUDGET)


class RejectionError(TemplateError):
    """What a template's raise_exception() raises."""


def compile_template(source: str, now: Callable[[], datetime]) -> Template:
    """Compile a chat template; `now` is the clock behind `strftime_now`.

    Raises jinja2.TemplateSyntaxError, and RecursionError or SyntaxError where the nesting is too deep.
    """
    environment = _environment(now)
    tree = environment.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "metered", [], [], None, None, lineno=loop.lineno)
    tree.set_environment(environment)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def run_template(
    template: Template, variables: Mapping[str, Any], check_length: Callable[[int], None] = lambda characters: None
) -> str:
    """Render within the budget. Raises SecurityError beyond it, and whatever else the template raises.

    `check_length` is told how many characters there are, as they come, and may raise.
    """
    steps = _steps_left.set(STEP_BUDGET)
    parts, characters = [], 0
    try:
        for part in template.generate(variables):
            parts.append(part)
            characters += len(part)
            check_length(characters)
        return "".join(parts)
    finally:
        _steps_left.reset(steps)


def _environment(now: Callable[[], datetime]) -> _Sandbox:
    def strftime_now(form: str) -> str:
        return now().strftime(form)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters.update(tojson=_to_json, metered=_metered)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    # The names of the parameters are Jinja's: a template may pass `self` or `context` by keyword.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _spend(CALL_STEPS)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > SIZE_LIMIT:
            raise SecurityError(f"the result of {operator!r} is too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> int:
    """Items of a repeated sequence, or an upper bound on the bits of an integer product or power."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length()
    if operator == "*" and isinstance(left, int):
        left, right = right, left
    repeats = operator == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int)
    return len(left) * right if repeats else 0


def _spend(steps: int) -> None:
    left = _steps_left.get() - steps
    if left < 0:
        raise SecurityError(f"it takes more than {STEP_BUDGET:,} steps")
    _steps_left.set(left)


@pass_context  # so that Jinja does not evaluate it once and for all at compile time
def _metered(context: Context, iterable: Any) -> Any:
    """What a `for` loop walks over, paid for from the budget: at once where its length is known, else turn by turn."""
    if hasattr(iterable, "__len__"):
        _spend(len(iterable))
        return iterable
    return _metered_turns(iterable) if isinstance(iterable, Iterator) else iterable


def _metered_turns(iterator: Iterator[Any]) -> Iterator[Any]:
    for item in iterator:
        _spend(1)
        yield item


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an answer for training; for inference its body is all there is.

    The body is compiled as a call block, as in `transformers`, since that decides the scope of its variables.
    """

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> Any:
        return caller()


class _Namespace(Namespace):
    """Jinja's `namespace()` without private attributes, which `transformers` refuses too."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named parameter: a template may write namespace(self=1)
        for name in dict(*args[1:], **kwargs):
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the namespace attribute {name!r} begins with an underscore")


class _Dict:
    """`dict` for templates: the constructor and `fromkeys`, without the type's methods that change an argument."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes what means something in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise RejectionError(str(message))
