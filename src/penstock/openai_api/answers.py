"""The answers to a request: its prompts become completions of the engine, and these one response object."""

from __future__ import annotations

import secrets
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from penstock.completion import Completion
from penstock.errors import MemoryCeilingError, PenstockError
from penstock.openai_api.echo import Echo
from penstock.openai_api.errors import RequestError
from penstock.openai_api.json_parts import expanded, json_parts
from penstock.openai_api.logprobs import chat_logprobs, text_logprobs
from penstock.openai_api.requests import ChatCompletionRequest
from penstock.openai_api.tools import for_template, tool_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.known_model import KnownModel
    from penstock.llm import LLM
    from penstock.openai_api.requests import CompletionRequest
    from penstock.openai_api.tools import ToolUse
    from penstock.sampling import SamplingParams

    Request = ChatCompletionRequest | CompletionRequest

DEFAULT_MAX_TOKENS = 1024
"""For requests that name no limit; the context ends them earlier."""
FINGERPRINT = f"penstock-{version('penstock')}"
SEED_BITS = 53
"""Of seeds that are drawn here: every reader of JSON keeps so many."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was found to be good: its prompts as token ids, four bytes each, and how to draw."""

    chat: bool
    prompts: tuple[array[int], ...]
    choices: int
    params: SamplingParams
    """With a seed."""
    most_tokens: int
    """Where the request names no limit."""
    adapter: str | None = None
    """What its prompts go through."""
    tools: ToolUse | None = None
    """What its answers may call."""
    echo: bool = False
    """Whether answers begin with their prompts, with the probabilities of these where those of tokens are wanted."""
    ends: frozenset[int] = frozenset()
    """Tokens that end its answers, besides the model's own."""

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(len(prompt) for prompt in self.prompts)


def prepare(
    model: KnownModel,
    request: Request,
    *,
    default_max_tokens: int = DEFAULT_MAX_TOKENS,
    default_seed: int | None = None,
    adapter: str | None = None,
) -> Prepared:
    """Tokenize a request's prompts and check that they can be answered, as far as the model can say so, open or not.
    Threads beside the engine's may call this.

    `adapter`: one of the model's, or none. Raises RequestError.
    """
    chat = isinstance(request, ChatCompletionRequest)
    seed = secrets.randbits(SEED_BITS) if default_seed is None else default_seed
    try:
        params, use, ends = request.params(seed), None, frozenset[int]()
        prompts: Sequence[str | list[int]]
        if isinstance(request, ChatCompletionRequest):
            use = _tool_use(model, request)
            if use is not None and use.grammar is not None:
                params = replace(params, grammar=use.grammar)
            messages = [message.plain() for message in request.messages]
            prompts = [model.chat_prompt(messages, tools=None if use is None else for_template(request.tools or []))]
        elif request.suffix:
            prompts, ends = _infilling(model, request.prompts, request.suffix)
        else:
            prompts = request.prompts
        _check_form(params, "response_format" if use is None else "tools")
        if request.max_tokens == 0:  # nothing is drawn
            default_max_tokens = 0
        tokens = tuple(_checked(model, prompt, params, default_max_tokens) for prompt in prompts)
    except RequestError:
        raise
    except PenstockError as error:
        raise RequestError.of(error, "messages" if chat else "prompt") from error
    echo = not isinstance(request, ChatCompletionRequest) and bool(request.echo)
    return Prepared(chat, tokens, request.choices, params, default_max_tokens, adapter, use, echo, ends)


def submit(
    llm: LLM,
    request: Request | Prepared,
    *,
    default_max_tokens: int = DEFAULT_MAX_TOKENS,
    default_seed: int | None = None,
    drawn: Sequence[Sequence[int]] = (),
    adapter: str | None = None,
) -> Answers:
    """Let all completions of a request take part in the engine's passes.

    default_max_tokens: for requests without a limit, as far as memory and context allow; default_seed: for those
    without a seed, instead of a fresh one. drawn: for each completion, in the order of `Answers.token_ids`, the tokens
    that an earlier run drew. adapter: of a request that is not prepared. Raises RequestError, and then nothing was
    submitted.
    """
    if not isinstance(request, Prepared):
        request = prepare(
            llm, request, default_max_tokens=default_max_tokens, default_seed=default_seed, adapter=adapter
        )
    completions: list[Completion] = []
    echoes: list[Echo] = []
    try:
        for prompt in request.prompts:
            if request.echo:
                echoes.append(Echo(llm, prompt, request.params.logprobs, request.adapter))
            for choice in range(request.choices):
                before = drawn[len(completions)] if len(completions) < len(drawn) else ()
                completions.append(_submit_one(llm, request, prompt, choice, before))
    except BaseException as error:
        Answers(llm, request, completions, echoes).cancel()
        if not isinstance(error, PenstockError):
            raise
        raise RequestError.of(error, "messages" if request.chat else "prompt") from error
    return Answers(llm, request, completions, echoes)


class Answers:
    """All completions of one request: those of the first prompt, one a choice, then those of the next."""

    def __init__(self, llm: LLM, request: Prepared, completions: list[Completion], echoes: Sequence[Echo] = ()) -> None:
        """`echoes`: of the prompts, where answers begin with them."""
        self.request = request
        self.completions = completions
        self._echoes = echoes
        self._tokenizer = llm.tokenizer
        self._llm: LLM | None = llm

    @property
    def _parts(self) -> list[Echo | Completion]:
        return [*self._echoes, *self.completions]

    @property
    def runs(self) -> bool:
        """Whether any of them goes on."""
        return any(part.runs for part in self._parts)

    @property
    def error(self) -> PenstockError | None:
        """Why one of them could not go on; the request has failed then."""
        return next((part.error for part in self._parts if part.error is not None), None)

    @property
    def token_ids(self) -> list[list[int]]:
        """What each has drawn so far; `submit` takes it as `drawn`."""
        return [list(completion.sequence.token_ids) for completion in self.completions]

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts, each counted once, and of the answers so far; and how many of the prompts' were
        there."""
        return usage_of(self.request, self._drawn, self.cached_tokens)

    @property
    def cached_tokens(self) -> int:
        """Of the prompts, each counted once: those that nothing had to be computed for."""
        if self._echoes and self.request.params.logprobs is not None:  # all of a prompt is computed where it is scored
            return 0
        return cached_of(self.request, [completion.sequence.cached_tokens for completion in self.completions])

    @property
    def _drawn(self) -> int:
        return sum(len(completion.sequence.token_ids) for completion in self.completions)

    def response(self, *, id: str, created: int, model: str, cached: bool = True) -> dict[str, Any]:
        """The response object once all have ended. `created`: seconds since 1970; `cached`: whether to say how many
        tokens were there, which depends on what was asked before."""
        whole: dict[str, Any] = expanded(self._response(id, created, model))
        if not cached:
            whole["usage"] = usage_of(self.request, self._drawn)
        return whole

    def response_parts(self, *, id: str, created: int, model: str) -> Iterator[str]:
        """Its JSON text, in parts: with the probabilities of many tokens it is a long one."""
        return json_parts(self._response(id, created, model))

    def _response(self, id: str, created: int, model: str) -> dict[str, Any]:
        kind = "chat.completion" if self.request.chat else "text_completion"
        return {
            **head(kind, id, created, model),
            "seed": self.request.params.seed,
            "choices": [self._choice(index, completion) for index, completion in enumerate(self.completions)],
            "usage": self.usage,
        }

    def cancel(self) -> None:
        """End them, and free their memory; to be called in the end in any case. What they came to does not need the
        model any more."""
        llm, self._llm = self._llm, None
        with ExitStack() as stack:  # all of them, also where one raises
            for completion in self.completions:
                if llm is not None:
                    stack.callback(llm.cancel, completion)
            for echo in self._echoes:
                stack.callback(echo.cancel)

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        output, tokenizer = completion.output(), self._tokenizer
        wanted = self.request.params.logprobs is not None
        reason = output.finish_reason
        if self.request.chat:
            message, called = _message(output.text, self.request.tools)
            body: dict[str, Any] = {"message": message}
            reason = "tool_calls" if called and reason == "stop" else reason
            logprobs = chat_logprobs(tokenizer, output.logprobs) if wanted else None
        else:
            echo = self._echoes[index // self.request.choices] if self._echoes else None
            before = "" if echo is None else echo.text
            body = {"text": before + output.text}
            logprobs = text_logprobs(tokenizer, output.logprobs, len(before)) if wanted else None
            if echo is not None and logprobs is not None:
                logprobs = echo.before(logprobs)
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}


def _message(text: str, tools: ToolUse | None) -> tuple[dict[str, Any], bool]:
    """The message of an answer, and whether it calls anything."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if tools is None:
        return message, False
    answer = tools.calls()
    answer.push(text)
    answer.finish()
    if not answer.calls:
        return message | {"content": answer.said}, False
    return message | {"content": answer.said.strip() or None, "tool_calls": tools.as_json(answer.calls)}, True


def _infilling(model: KnownModel, prefixes: Sequence[Any], suffix: str) -> tuple[list[list[int]], frozenset[int]]:
    """Prompts for what belongs between each of these texts and the suffix, and the tokens that end it."""
    try:
        return [model.infilling_prompt(prefix, suffix) for prefix in prefixes], model.infilling.ends
    except PenstockError as error:
        raise RequestError.of(error, "suffix") from error


def _check_form(params: SamplingParams, param: str) -> None:
    """Raise RequestError where answers cannot be held to what is asked."""
    try:
        if params.form is not None:
            params.form.source()
    except PenstockError as error:
        raise RequestError.of(error, param) from error


def _tool_use(model: KnownModel, request: ChatCompletionRequest) -> ToolUse | None:
    if not request.tools and request.tool_choice in (None, "none", "auto"):
        return None
    tokenizer = model.text_side()
    template = tokenizer.chat_template(for_tools=True).source if tokenizer.has_chat_template else ""
    return tool_use(request.tools or [], request.tool_choice, request.parallel_tool_calls, template, tokenizer)


def usage_of(request: Prepared, drawn: int, cached: int | None = None) -> dict[str, Any]:
    """OpenAI's usage object, of a request whose answers have `drawn` tokens together; `cached`: how many of the
    prompts' were there, None not to say."""
    usage = {"prompt_tokens": request.tokens, "completion_tokens": drawn, "total_tokens": request.tokens + drawn}
    return usage if cached is None else usage | {"prompt_tokens_details": {"cached_tokens": cached}}


def cached_of(request: Prepared, cached: Sequence[int]) -> int:
    """How many of the prompts' tokens were there, of as many as were for each answer: what one answer to a prompt
    takes over from another is not."""
    return sum(min(cached[first : first + request.choices]) for first in range(0, len(cached), request.choices))


def head(kind: str, id: str, created: int, model: str) -> dict[str, Any]:
    """What every object about a request begins with."""
    return {"id": id, "object": kind, "created": created, "model": model, "system_fingerprint": FINGERPRINT}


def _checked(model: KnownModel, prompt: str | Sequence[int], params: SamplingParams, most_tokens: int) -> array[int]:
    try:
        return array("I", model.check(prompt, params, most_tokens=most_tokens))
    except MemoryCeilingError:
        if params.max_tokens is not None:
            raise
        return array("I", model.check(prompt, params))


def _submit_one(llm: LLM, request: Prepared, prompt: array[int], choice: int, drawn: Sequence[int]) -> Completion:
    """Without a limit of the request's own, memory may set one below the default."""
    asked: dict[str, Any] = {"drawn": drawn, "choice": choice, "adapter": request.adapter, "ends": request.ends}
    asked["continues"] = not request.chat
    if request.tools is not None:
        asked["shown"] = request.tools.shown
    try:
        return llm.submit(prompt, request.params, most_tokens=request.most_tokens, **asked)
    except MemoryCeilingError:
        if request.params.max_tokens is not None:
            raise
        return llm.submit(prompt, request.params, **asked)
