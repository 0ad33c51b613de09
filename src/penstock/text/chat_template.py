"""Chat templates: a conversation becomes the text that the model was trained to answer.

A checkpoint ships its template as Jinja source in the dialect of `transformers`, and the text rendered here equals that
of its `apply_chat_template`. The dialect itself is in `template_sandbox`; here are the conversation's checks, the
variables that a template sees, and what its failures mean to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType, TracebackType
from typing import Any, TypeGuard

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from penstock.errors import ChatTemplateError, PenstockError
from penstock.text.template_sandbox import RejectionError, compile_template, run_template

_FILE_REMEDY = "Use the template as published with the model, or go without one (--raw, or generate() in Python)."
_CALL_REMEDY = "Send what this model's template expects, or go without it (--raw, or generate() in Python)."
_CONTINUE_REMEDY = "End the conversation with a message of the user and let the model begin a new answer."

# Names under which callers pass a message's reasoning; most templates read the first, some the second.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_BODY_KEYS = ("content", "tool_calls", *_REASONING_KEYS)
_TOOL_ROLES = ("tool", "ipython", "function")  # their content is a tool's result, any JSON value

# Marks the end of a message to be continued. Plain ASCII, so that no filter escapes it; whether its last space is
# still there tells whether the template trims the message.
_END_MARK = "PENSTOCK-CONTINUES-HERE "


class ChatTemplate:
    """A compiled template together with the special tokens that it may name.

    `where` says in error messages which template is meant; `now` is the clock behind `strftime_now` (local time).
    Raises ChatTemplateError where the source is not a template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
        where: str = "the chat template",
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.where = where
        self._template = self._compile(now)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        check_length: Callable[[int], None] = lambda characters: None,
        **variables: Any,
    ) -> str:
        """The conversation as text, special tokens included: encode it without adding any.

        `messages`, `tools` (JSON schemas), `documents` and `variables` hold JSON values; a variable wins over a special
        token of the same name. `add_generation_prompt` (default: yes, unless the final message is to be continued) ends
        the text with the header of an answer, `continue_final_message` ends it inside the last message. `check_length`
        is told how many characters there are, as they come, and may raise a PenstockError.
        Raises ChatTemplateError where the conversation is malformed, or where the template rejects it or fails.
        """
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if add_generation_prompt and continue_final_message:
            raise ChatTemplateError(
                "add_generation_prompt and continue_final_message contradict each other",
                "Set one of them: the first begins an answer, the second goes on with the last message.",
            )
        conversation = _conversation(messages)
        ending = _mark_ending(conversation[-1]) if continue_final_message else ""
        text = self._run(
            {
                **self.special_tokens,
                **_plain(variables, "the template's variables"),
                "messages": conversation,
                "tools": _objects(tools, "tools"),
                "documents": _objects(documents, "documents"),
                "add_generation_prompt": add_generation_prompt,
            },
            check_length,
        )
        return self._cut_at_mark(text, ending) if continue_final_message else text

    def _compile(self, now: Callable[[], datetime]) -> Template:
        try:
            return compile_template(self.source, now)
        except TemplateSyntaxError as error:
            raise self._malformed(f"line {error.lineno}: {_one_line(error.message)}") from error
        except RecursionError as error:
            raise self._malformed("it is nested too deeply") from error
        except SyntaxError as error:  # in the Python that Jinja wrote: more nested blocks than Python takes
            raise self._malformed(_one_line(error.msg)) from error

    def _malformed(self, problem: str) -> ChatTemplateError:
        return ChatTemplateError(f"{self.where} is malformed: {problem}", _FILE_REMEDY)

    def _run(self, variables: dict[str, Any], check_length: Callable[[int], None]) -> str:
        try:
            return run_template(self._template, variables, check_length)
        except PenstockError:
            raise
        except RejectionError as error:
            problem = f"{self.where} rejects the conversation: {_one_line(error)}"
            raise ChatTemplateError(problem, _CALL_REMEDY) from error
        except SecurityError as error:
            raise self._failed("does what the sandbox forbids", error, _FILE_REMEDY) from error
        except RecursionError as error:
            raise self._failed("calls itself without end", error, _FILE_REMEDY) from error
        except Exception as error:  # a template can raise whatever Python code can
            raise self._failed("fails on this conversation", error, _CALL_REMEDY) from error

    def _failed(self, how: str, error: Exception, remedy: str) -> ChatTemplateError:
        line = _template_line(error.__traceback__)
        at = f" at line {line}" if line else ""
        told = _one_line(error)
        if not isinstance(error, TemplateError):
            told = f"{type(error).__name__}: {told}".removesuffix(": ")
        return ChatTemplateError(f"{self.where} {how}{at}: {told}", remedy)

    def _cut_at_mark(self, text: str, ending: str) -> str:
        mark = text.rfind(_END_MARK.rstrip())
        if mark < 0 or ending.strip() not in text:
            problem = f"{self.where} leaves out or changes the final message, so it cannot be continued"
            raise ChatTemplateError(problem, _CONTINUE_REMEDY)
        # Where the template trimmed the mark's own space, it trims the message's as well.
        return text[:mark] if text.startswith(_END_MARK, mark) else text[:mark].rstrip()


def _conversation(messages: object) -> list[dict[str, Any]]:
    """Plain copies of the messages, in the form that `transformers` hands to a template."""
    if not isinstance(messages, (list, tuple)):
        raise _malformed_conversation(f"the messages are a {type(messages).__name__}, not a list")
    if not messages:
        raise _malformed_conversation("the list of messages is empty")
    return [_message(message, f"message {index}") for index, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, Any]:
    """A copy without the keys that are None, and with reasoning under every name that templates read."""
    if not isinstance(message, Mapping):
        raise _malformed_conversation(f"{where} is a {type(message).__name__}, not a dict")
    plain = {key: value for key, value in _plain(message, where).items() if value is not None}
    if not isinstance(plain.get("role"), str):
        raise _malformed_conversation(f"{where} has no role")
    if not any(key in plain for key in _BODY_KEYS):
        raise _malformed_conversation(f"{where} has no content")
    content = plain.get("content", "")
    if not isinstance(content, str) and not _all_dicts(content) and plain["role"] not in _TOOL_ROLES:
        raise _malformed_conversation(f"the content of {where} is neither a string nor a list of parts")
    reasoning = next((plain[key] for key in _REASONING_KEYS if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _malformed_conversation(problem: str) -> ChatTemplateError:
    remedy = 'Give a list such as [{"role": "user", "content": "Hello"}].'
    return ChatTemplateError(f"the conversation is malformed: {problem}", remedy)


def _objects(values: object, what: str) -> list[dict[str, Any]] | None:
    plain = _plain(values, what)
    if plain is None or _all_dicts(plain):
        return plain
    raise ChatTemplateError(f"{what} must be a list of JSON objects", f"Give {what} as a list of dicts.")


def _all_dicts(values: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _plain(value: Any, where: str) -> Any:
    """A deep copy in exact JSON types, so that no object with methods of its own reaches the template."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    try:
        if isinstance(value, Mapping):
            return {_plain(key, where): _plain(item, where) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(item, where) for item in value]
    except RecursionError:
        raise ChatTemplateError(f"{where}: nested too deeply", "Give values of moderate depth.") from None
    remedy = "Use strings, numbers, booleans, None, lists and dicts."
    raise ChatTemplateError(f"{where}: a {type(value).__name__} is not a JSON value", remedy)


def _mark_ending(message: dict[str, Any]) -> str:
    """Append the mark to the message's last text, in place; returns that text as it was."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return content
    for part in reversed(content if _all_dicts(content) else []):
        text = part.get("text")
        if isinstance(text, str):
            part["text"] = text + _END_MARK
            return text
    raise _malformed_conversation("the final message has no text to continue")


def _template_line(traceback: TracebackType | None) -> int | None:
    """The line of the template where an error arose; Jinja rewrites tracebacks to show it."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _one_line(message: object, longest: int = 300) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= longest else text[:longest] + "…"
