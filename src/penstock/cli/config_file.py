"""The configuration file: defaults for options, in TOML, a table for each command.

    [run]
    memory = "3GiB"
    max-tokens = 512

What stands on the command line wins over the environment, and that over the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.cli.declared import declared
from penstock.errors import UsageError
from penstock.strict_json import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, before it was in the standard library

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from penstock.cli.declared import Declared

VARIABLE = "PENSTOCK_CONFIG"
_KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
}
_TEXT = "a string", (str,)
_CORRECT = "Correct it, or take the line out."


def config_path() -> Path | None:
    """The file that $PENSTOCK_CONFIG names, which may be empty for none; or else the user's own, if there is one."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    home = os.environ.get("XDG_CONFIG_HOME")
    path = (Path(home) if home else Path.home() / ".config") / "penstock" / "config.toml"
    return path if path.exists() else None


def read_defaults(path: Path, commands: Mapping[str, Callable[..., None]]) -> dict[str, dict[str, Any]]:
    """The defaults that a file gives, by command and parameter, as a click context's `default_map` has them.

    `commands`: their functions, by name. Raises UsageError, naming file and key, where it cannot be read, for commands
    and options that are not there, and for values that an option cannot have.
    """
    defaults: dict[str, dict[str, Any]] = {}
    for name, table in _read(path).items():
        if name not in commands:
            known = ", ".join(commands)
            raise UsageError(f"{path}: there is no command {shown(name)}.", f"Name a table after one of: {known}.")
        if not isinstance(table, dict):
            problem = f"{path}: {name} is {shown(table)}, not a table."
            raise UsageError(problem, f"Put options of `penstock {name}` below a line [{name}].")
        options = {option.key: option for option in declared(commands[name]) if option.is_option}
        defaults[name] = _table(f"{path}: [{name}]", name, table, options)
    return defaults


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        problem = f"The configuration {path} cannot be read: {error.strerror or error}."
        raise UsageError(problem, f"Let {VARIABLE} name another file, or none: {VARIABLE}=") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        problem = f"{path} is not TOML: {str(error) or type(error).__name__}."
        raise UsageError(problem, 'Write lines like memory = "3GiB" below a line [run].') from error
    return content


def _table(where: str, command: str, table: Mapping[str, Any], options: Mapping[str, Declared]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            remedy = f"`penstock {command} --help` lists them; write one without the dashes before it."
            raise UsageError(f"{where} has the key {shown(key)}, and there is no such option.", remedy)
        if option.name in defaults:
            raise UsageError(f"{where} has {shown(key)} twice, with a dash and an underscore.", "Leave one of them.")
        defaults[option.name] = _value(f"{where} {key}", value, option)
    return defaults


def _value(where: str, value: Any, option: Declared) -> Any:
    if not option.many:
        return _one(where, value, option)
    if not isinstance(value, list):
        raise UsageError(f"{where} is {shown(value)}, not a list.", "The option may be given several times: use [...].")
    return [_one(where, one, option) for one in value]


def _one(where: str, value: object, option: Declared) -> Any:
    """A value, checked by its type in TOML and by the option's bounds; a path may begin with "~"."""
    told, kinds = _KINDS.get(option.kind, _TEXT)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"{where} is {shown(value)}, not {told}.", _CORRECT)
    least, most = option.info.min, option.info.max
    if isinstance(value, (int, float)) and ((least is not None and value < least) or (most or value) < value):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{where} is {shown(value)}, not {bounds}.", _CORRECT)
    return str(Path(str(value)).expanduser()) if option.kind is Path else value
