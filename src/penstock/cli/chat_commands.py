"""The commands of the chat: what is typed with a / before it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.cli.attached import attach
from penstock.cli.show import say
from penstock.cli.stats import console, print_stats
from penstock.cli.status_line import visible
from penstock.errors import PenstockError
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.cli.chat import Chat

HINTS = (
    "Enter sends a message. Alt-Enter, or a backslash at the end of a line, begins another line; what is pasted may "
    "have several. Ctrl-C stops an answer. A message that begins with / goes with a space before it."
)
SETTABLE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "max_tokens",
    "stop",
)
WHOLE = ("top_k", "seed", "max_tokens")
WHERE_OPEN = {"seed": "another one for every answer", "max_tokens": "to the end of the context", "stop": "none"}
"""What is so where nothing is set, and the model has no say."""


class Command(NamedTuple):
    """What to do, with what stands behind the command; the argument's name in brackets where it may be left out."""

    act: Callable[[Chat, str], None]
    argument: str
    help: str


def run_command(chat: Chat, text: str) -> bool:
    """Do what a command says; False where it ends the chat. What goes wrong is told, and the chat goes on."""
    name, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    if name not in COMMANDS:
        say(f"There is no command {visible(name)}; /help lists them.")
        return True
    command = COMMANDS[name]
    if argument and not command.argument:
        say(f"{name} takes nothing behind it.")
    elif not argument and command.argument and not command.argument.startswith("["):
        say(f"{name} takes {command.argument} behind it.")
    elif name == "/exit":
        return False
    else:
        try:
            command.act(chat, argument)
        except PenstockError as error:
            print(f"error: {error}", file=sys.stderr)
    return True


def _help(chat: Chat, argument: str) -> None:
    width = shutil.get_terminal_size().columns - 1
    names = {name: f"{name} {command.argument}".rstrip() for name, command in COMMANDS.items()}
    indent = max(map(len, names.values())) + 2
    for name, command in COMMANDS.items():
        print(textwrap.fill(f"{names[name]:{indent}}{command.help}", width, subsequent_indent=" " * indent))
    print(textwrap.fill(HINTS, width))


def _system(chat: Chat, argument: str) -> None:
    if not argument:
        say(visible(chat.session.system or "The model is told nothing before the conversation."))
        return
    chat.session.system = None if argument == "-" else argument
    say("From the next message on; all that was said is then computed again.")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    name = name.replace("-", "_")
    if not argument:
        _show_params(chat)
    elif name not in SETTABLE:
        say(f"There is no {visible(name)} to set; there are {', '.join(SETTABLE)}.")
    elif not value.strip():
        say(f"{name} is {_param_in_words(chat, name)}; /set {name} VALUE changes it.")
    else:
        try:
            chat.params = replace(chat.params, **{name: _value(name, value.strip())})
        except ValueError:
            say(f"{visible(value.strip())} is no {'whole ' * (name in WHOLE)}number.")
        else:
            say(f"{name} is {_param_in_words(chat, name)}, from the next answer on.")


def _value(name: str, text: str) -> Any:
    """Raises ValueError where it is no number and has to be one."""
    if text == "default":
        return getattr(SamplingParams(), name)
    if name == "stop":
        return text.replace("\\n", "\n")
    return int(text) if name in WHOLE else float(text)


def _show_params(chat: Chat) -> None:
    for name in SETTABLE:
        print(f"{name:20}{_param_in_words(chat, name)}")
    say("/set NAME VALUE changes one; the VALUE default takes it back.")


def _param_in_words(chat: Chat, name: str) -> str:
    value = getattr(chat.params, name)
    if value not in (None, ()):
        return repr(value) if name == "stop" else str(value)
    return WHERE_OPEN.get(name) or f"{getattr(chat.params.rule(chat.llm.defaults), name)} (the model's)"


def _file(chat: Chat, argument: str) -> None:
    attached = attach(Path(argument), chat.llm.check_length)
    chat.files.append(attached)
    tokens = len(chat.llm.text_prompt(str(attached)))
    say(f"{attached.name} goes with the next message: {len(attached.text):,} characters, about {tokens:,} tokens.")


def _retry(chat: Chat, argument: str) -> None:
    params = replace(chat.params, seed=None)  # the same one would draw the same answer
    if params.rule(chat.llm.defaults).temperature == 0:
        say("The temperature is 0, so the same answer comes again; /set temperature 0.7, say, varies it.")
    chat.answer(lambda: chat.session.retry(params))


def _undo(chat: Chat, argument: str) -> None:
    with chat.uninterrupted():
        question = chat.session.undo()
    say(f"Taken back: {visible(textwrap.shorten(question, 60, placeholder=' ...'))}")


def _continue(chat: Chat, argument: str) -> None:
    if chat.session.unfinished:
        chat.answer(chat.session.go_on)
    else:
        say("There is no unfinished answer.")


def _stats(chat: Chat, argument: str) -> None:
    if chat.stats is not None and chat.stats.log:
        print_stats(chat.llm, chat.stats)
    used, context = len(chat.session.tokens), chat.llm.context
    console.print(f"context: {used} of {context} tokens used, {context - used} left", soft_wrap=True)


def _save(chat: Chat, argument: str) -> None:
    path, messages = Path(argument).expanduser(), chat.session.messages
    try:
        with path.open("x", encoding="utf-8") as file:
            if path.suffix == ".json":
                json.dump(messages, file, ensure_ascii=False, indent=2)
            else:
                file.write("".join(f"## {m['role']}\n\n{m['content'].strip()}\n\n" for m in messages))
    except FileExistsError:
        say(f"{visible(argument)} is there already; give another name.")
    except OSError as error:
        say(f"{visible(argument)} cannot be written: {error.strerror}.")
    else:
        say(f"{len(messages)} messages are in {visible(argument)}.")


def _reset(chat: Chat, argument: str) -> None:
    chat.session.reset()
    chat.stats = None
    chat.files.clear()
    say("The conversation is forgotten.")


COMMANDS = {
    "/help": Command(_help, "", "list the commands"),
    "/file": Command(_file, "FILE", "put a text file behind the next message"),
    "/system": Command(_system, "[TEXT]", "what to tell the model before the conversation; - for nothing"),
    "/set": Command(_set, "[NAME VALUE]", "how tokens are drawn: temperature, top_p, max_tokens ..."),
    "/retry": Command(_retry, "", "another answer to the last message"),
    "/undo": Command(_undo, "", "take back the last message and its answer"),
    "/continue": Command(_continue, "", "go on with an answer that was stopped, or failed"),
    "/stats": Command(_stats, "", "where the time of the last answer went, and how much of the context is left"),
    "/save": Command(_save, "FILE", "write the conversation to a file; as JSON where its name ends in .json"),
    "/reset": Command(_reset, "", "forget the conversation"),
    "/exit": Command(_help, "", "leave, as Ctrl-D does"),
}
