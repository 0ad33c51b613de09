"""The arguments and options of a command, as its function declares them to typer."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.models import ArgumentInfo, OptionInfo

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Declared:
    """One argument or option."""

    name: str
    """Of the function's parameter."""
    info: ArgumentInfo | OptionInfo
    flags: tuple[str, ...]
    """What an option is called, like "--top-k"; "--stdin/--no-stdin" is one. None for an argument."""
    kind: type
    """Of one value."""
    many: bool
    """Whether it may be given several times."""
    default: Any
    """inspect.Parameter.empty where it has to be given."""

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)

    @property
    def key(self) -> str:
        """What an option is called, without the dashes before it: "top-k"."""
        return max(self.flags, key=len).partition("/")[0].lstrip("-")


def declared(command: Callable[..., None]) -> list[Declared]:
    """Those of a command, in their order."""
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    return [_declared(name, hints[name], p.default) for name, p in signature.parameters.items() if name in hints]


def _declared(name: str, hint: Any, default: Any) -> Declared:
    plain, info = typing.get_args(hint)[:2]
    if not isinstance(info, (ArgumentInfo, OptionInfo)):
        raise TypeError(f"{name}: {hint} says nothing to the command line")
    flags: tuple[str, ...] = ()
    if isinstance(info, OptionInfo):
        # Within Annotated, typer takes the first name for a default until it builds the command.
        named = (*([info.default] if isinstance(info.default, str) else []), *(info.param_decls or ()))
        flags = named or (f"--{name.replace('_', '-')}",)
    kind, many = _kind(plain)
    return Declared(name, info, flags, kind, many, default)


def _kind(plain: Any) -> tuple[type, bool]:
    """The type of one value, of an optional one or of a list, and whether it is of a list."""
    for part in typing.get_args(plain) or (plain,):
        if part is not type(None):
            kind, many = _kind(part) if typing.get_args(part) else (part, False)
            return kind, many or typing.get_origin(plain) is list
    raise TypeError(f"{plain} is no type of an option")
