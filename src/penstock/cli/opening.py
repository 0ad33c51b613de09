"""Options of commands that open a model, taken from where they are declared (options.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from penstock.options import OpenOptions, command_options


def of_opening(name: str) -> Any:
    """What typer is to know of an option of opening."""
    _, told = command_options()[name]
    flags = () if told["flag"] is None else (told["flag"],)
    return typer.Option(*flags, help=told["help"], metavar=told["metavar"])


def opens_model(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command some of the options of opening, all that commands have by default, in place of its parameter
    `options`, which gets them as OpenOptions."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [p for own in declared for p in (_parameters(names) if own.name == "options" else [own])]

        @wraps(command)
        def run(**given: Any) -> None:
            options = {name: given.pop(name) for name in [p.name for p in _parameters(names)]}
            command(**given, options=OpenOptions(**options | {"adapters": tuple(options.get("adapters") or ())}))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameters(names: tuple[str, ...]) -> list[inspect.Parameter]:
    # As the command line has them: a number with a unit is text.
    sizes = dict.fromkeys(("memory", "prefix_cache_size"), str | None)
    kinds = get_type_hints(OpenOptions) | sizes | {"adapters": list[str] | None}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=default or None if name == "adapters" else default,
            annotation=Annotated[kinds[name], of_opening(name)],
        )
        for name, (default, _) in command_options().items()
        if not names or name in names
    ]


def opening(options: OpenOptions) -> dict[str, Any]:
    """The options that commands have, for settings that extend OpenOptions."""
    return {name: getattr(options, name) for name in command_options()}
