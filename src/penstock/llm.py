"""The Python interface: open a model, complete text, chat, look at logits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.adapters.named import check_adapter
from penstock.checkpoints.checkpoint import generation_defaults, open_checkpoint
from penstock.checkpoints.store import find_model
from penstock.completion import Completion, Output, Piece
from penstock.embedding import check_embedded, embed
from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import ContextError, MemoryCeilingError, TokenizerError, UsageError
from penstock.grammars.compiler import GrammarCompiler
from penstock.memory.budget import Demand
from penstock.memory.text_room import BYTES_TO_TOKENIZE, TextRoom
from penstock.models.kv_planes import KvShape
from penstock.models.rows import Rows, SequenceRows
from penstock.models.tokens import check_tokens
from penstock.options import OpenOptions
from penstock.runtime import Runtime
from penstock.sampling import SamplingParams
from penstock.scoring import Scorer, tokens_of
from penstock.system import machine
from penstock.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path
    from types import TracebackType

    from penstock.adapters.adapter import Adapter
    from penstock.compute.kernels import F32
    from penstock.embedding import Pooling
    from penstock.engine import sequence as engine
    from penstock.grammars.matcher import Matcher
    from penstock.memory.budget import Plan
    from penstock.models.kv_cache import KvCache
    from penstock.models.pass_stats import PassStats
    from penstock.models.stage import OnLayer, Stage
    from penstock.scoring import Scorable, Score
    from penstock.speculate.draft_model import DraftModel

    Prompt = str | Sequence[int]
    Message = Mapping[str, Any]


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and any(isinstance(one, Mapping) for one in prompt)


class LLM:
    """A model that is ready to run. Not to be used by two threads at once; a context manager that closes itself."""

    def __init__(self, path: Path, options: OpenOptions, on_layer: OnLayer | None = None) -> None:
        """The model in directory `path`; `LLM.open` takes names and sizes as people write them."""
        machine.return_large_arrays()
        available = machine.available_bytes()
        checkpoint = open_checkpoint(path)
        self.defaults = generation_defaults(path)
        self.tokenizer = Tokenizer.open(path)
        machine.trim_heap()
        runtime = Runtime(checkpoint, options, available, self.defaults)
        self._runtime, self.engine = runtime, runtime.engine
        self.path, self.files, self.config = checkpoint.path, checkpoint.files, runtime.config
        self.architecture = runtime.architecture
        self.context, self.kernels, self.events = runtime.context, runtime.kernels, runtime.events
        self.weights, self.model = runtime.weights[0], runtime.stages[0].decoder
        self.tensors, self.memory = checkpoint.tensors, runtime.memory
        self.chain = runtime.engine.chain
        self.on_layer = on_layer
        if self.tokenizer is not None:
            self.tokenizer.room = TextRoom(self.engine.make_room_beside, options.longest_text)
        self._grammars = GrammarCompiler(
            str if self.tokenizer is None else self.tokenizer.to_json,  # not of self: a closed model goes at once
            self.config.vocab_size,
            self.defaults.eos_token_ids,
            self.engine.make_room_beside,
        )
        self.memory.caches.tellers.add(self._grammars)

    @property
    def on_layer(self) -> OnLayer | None:
        """Called as (layer, read_seconds, wait_seconds, compute_seconds) after each layer of each pass."""
        return self._runtime.stages[0].on_layer

    @on_layer.setter
    def on_layer(self, listener: OnLayer | None) -> None:
        for stage in self._runtime.stages:
            stage.on_layer = listener

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        memory: str | int | None = None,
        threads: int | None = None,
        context: int | None = None,
        draft: str | None = None,
        draft_nodes: int | None = None,
        kv_dtype: str = "bf16",
        adapters: Sequence[str | os.PathLike[str]] = (),
        prefix_cache: str | os.PathLike[str] | None = None,
        prefix_cache_size: str | int | None = None,
        on_layer: OnLayer | None = None,
        reserve: int = 0,
        longest_text: int | None = None,
    ) -> LLM:
        """Open MODEL: a directory in the Hugging Face layout, a name that this machine knows, or "demo".

        `OpenOptions` (options.py) says what each option means. adapters: directories of LoRA adapters, each "DIR" or
        "NAME=DIR"; a prompt goes through one where it says so. on_layer: called as (layer, read_seconds, wait_seconds,
        compute_seconds) after each layer of each pass; what it raises ends the pass, and the next one computes the same
        again.

        Reads headers and small tensors only. Raises CheckpointError and its kin, UsageError, MemoryCeilingError.
        """
        options = OpenOptions(
            memory=memory,
            threads=threads,
            context=context,
            draft=draft,
            draft_nodes=draft_nodes,
            kv_dtype=kv_dtype,
            adapters=tuple(os.fspath(one) for one in adapters),
            prefix_cache=None if prefix_cache is None else os.fspath(prefix_cache),
            prefix_cache_size=prefix_cache_size,
            reserve=reserve,
            longest_text=longest_text,
        )
        return cls.open_with(model, options, on_layer)

    @classmethod
    def open_with(cls, model: str | os.PathLike[str], options: OpenOptions, on_layer: OnLayer | None = None) -> LLM:
        """As `open`, with options that were put together before."""
        return cls(find_model(model), options, on_layer)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Iterator[Piece]:
        """Complete one prompt (text, or token ids), through an adapter or none, a piece after every pass that drew
        something.

        Closing the iterator ends the sequence. Raises UsageError, ContextError, ReadError, TokenizerError.
        """
        yield from self.drive(self._start([prompt], params, adapter))

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> list[Output]:
        """Complete a list of prompts, in one run of passes that all of them share, through an adapter or none. Raises
        as `stream` does."""
        if isinstance(prompts, str):
            raise UsageError(
                "generate() takes a list of prompts.", "For one prompt: generate([prompt]), or stream(prompt)."
            )
        completions = self._start(prompts, params, adapter)
        for _ in self.drive(completions):
            pass
        return [completion.output() for completion in completions]

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **template: Any,
    ) -> Output:
        """The answer to a conversation, [{"role": ..., "content": ...}, ...], through the model's chat template.

        `template` goes to the template (tools, documents, its own variables). Raises ChatTemplateError besides.
        """
        return self.generate([self.chat_prompt(messages, **template)], params, adapter=adapter)[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **template: Any,
    ) -> Iterator[Piece]:
        """As `chat`, the answer a piece after every pass that drew something. Raises as `chat` does."""
        return self.stream(self.chat_prompt(messages, **template), params, adapter=adapter)

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer is not None and self.tokenizer.has_chat_template

    def chat_prompt(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """The token ids of a conversation, ready for the answer."""
        return self.text_side().apply_chat_template(messages, most_tokens=self.most_prompt, **template)

    def text_prompt(self, text: str) -> list[int]:
        """The token ids of a text, as `encode` gives them; raises ContextError where it is too long for a prompt in any
        case, before it is divided."""
        return self.text_side().encode(text, most_tokens=self.most_prompt)

    def check_length(self, characters: int) -> None:
        """Raise TokenizerError, ContextError or MemoryCeilingError where no prompt may have so many characters."""
        self.text_side().check_length(characters, self.most_prompt)
        self.memory.check_tokenizing(BYTES_TO_TOKENIZE * characters)

    @property
    def most_prompt(self) -> int:
        """Tokens of the longest prompt that the context has room for, beside one token of an answer."""
        return self.context - 1

    def logits(self, tokens: Sequence[int], *, adapter: str | None = None) -> F32:
        """Logits after every token, through an adapter or none, float32 [n_tokens, vocab_size]. Raises UsageError,
        ContextError, ReadError."""
        tokens = list(tokens)
        check_adapter(adapter, [*self.adapters])
        check_tokens(tokens, self.config.vocab_size)
        if len(tokens) > self.context:
            raise ContextError(
                f"{len(tokens)} tokens are more than the context of {self.context}.", "Give fewer, or raise `context`."
            )
        cache = self.memory.new_cache(len(tokens), adapter)
        try:
            return self._all_logits(cache, tokens)
        finally:
            cache.truncate(0)
            self.chain.settle()

    def score(
        self, texts: Sequence[Scorable], *, stride: int | None = None, top: int = 0, adapter: str | None = None
    ) -> list[Score]:
        """How likely the model finds texts, in passes that all of them share: of each all tokens but the first, or, of
        a pair (context, following), those that follow.

        Each is a text, token ids, or a pair of such. stride: a text longer than the context is scored in windows of the
        context's length, each for `stride` tokens more; without one it is refused. top: tell so many of the likeliest
        tokens as well. Logarithms are those that `SamplingParams(logprobs=)` tells, to the bit. Raises UsageError,
        ContextError, TokenizerError, MemoryCeilingError, ReadError, NumericsError.
        """
        scorer = self.scorer(texts, stride=stride, top=top, adapter=adapter)
        for _ in scorer.run():
            pass
        return scorer.scores

    def scorer(
        self, texts: Sequence[Scorable], *, stride: int | None = None, top: int = 0, adapter: str | None = None
    ) -> Scorer:
        """As `score`, for whoever runs the passes. Raises what concerns the texts and not the passes."""
        check_adapter(adapter, [*self.adapters])
        if isinstance(texts, str) or any(isinstance(text, (int, np.integer)) for text in texts):
            raise UsageError("score() takes a list of texts.", "For one text: score([text]).")
        parts = [tokens_of(text, self.encode) for text in texts]
        return Scorer(self.engine, parts, stride=stride, top=top, adapter=adapter)

    def embed(self, texts: Sequence[Prompt], *, pooling: Pooling = "mean", adapter: str | None = None) -> F32:
        """Texts, or their token ids, as vectors of length 1, float32 [n, hidden_size]: of the hidden rows behind the
        last layer and its norm the mean of all, or the `last` one. Raises UsageError, ContextError, ReadError."""
        check_adapter(adapter, [*self.adapters])
        if isinstance(texts, str):
            raise UsageError("embed() takes a list of texts.", "For one text: embed([text]).")
        tokens = [self.check_embedded(text, pooling) for text in texts]
        return embed(self.engine, self.model, tokens, pooling, adapter)

    def check_embedded(self, text: Prompt, pooling: str) -> list[int]:
        """The token ids of a text that `embed` would take; raises as it does."""
        tokens = self.encode(text) if isinstance(text, str) else list(text)
        check_embedded(tokens, pooling, self.config.vocab_size, self.context)
        return tokens

    def _all_logits(self, cache: KvCache, tokens: list[int]) -> F32:
        slots = len(tokens)
        if slots <= min(MAX_ROWS, self.memory.most_rows({cache: slots}, 0, all_logits=True, wanted=slots)):
            return self._chunk_logits(cache, tokens, 0)
        step = min(MAX_ROWS, self.memory.most_rows({cache: slots}, slots, all_logits=True))
        self.memory.need({cache: slots}, min(step, slots), min(step, slots) + slots)  # raises where it does not fit
        out = np.empty((slots, self.config.vocab_size), np.float32)
        for begin in range(0, slots, step):
            out[begin : begin + step] = self._chunk_logits(cache, tokens[begin : begin + step], slots)
        return out

    def _chunk_logits(self, cache: KvCache, tokens: list[int], held: int) -> F32:
        """Logits of tokens that follow those in the cache, and are kept there; `held`: rows of logits beside them."""
        count = len(tokens)
        need = self.memory.need({cache: cache.length + count}, count, count + held)
        logits, _ = self.engine.chain.run(Rows([SequenceRows.plain(cache, tokens, range(count))]), need)
        cache.truncate(cache.length + len(tokens))
        return logits

    @property
    def stages(self) -> Sequence[Stage]:
        """Those that hold the model, in this process."""
        return self._runtime.stages

    @property
    def draft(self) -> DraftModel | None:
        """The smaller model that guesses, as long as it does."""
        return self._runtime.draft

    @property
    def kv_shape(self) -> KvShape:
        """What a position's keys and values take, in all layers."""
        return KvShape.of(self.config, self.memory.rooms[0].share.kv.dtype)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """What prompts may go through, by name."""
        return self._runtime.adapters

    def new_cache(self, adapter: str | None = None) -> KvCache:
        """An empty KV cache for `model.forward`, or for `submit`; its tokens go through an adapter or none."""
        check_adapter(adapter, [*self.adapters])
        return self.memory.new_cache(adapter=adapter)

    def plan_pass(self, rows: int = 1, logit_rows: int = 1, slots: int = 1) -> Plan:
        """How the ceiling is shared out in a pass of so many rows, with one sequence of `slots` positions.

        Raises MemoryCeilingError.
        """
        return self.memory.budget.plan(Demand(rows, logit_rows, self.memory.rooms[0].share.kv.bytes_for(slots)))

    def prefetch(self) -> float:
        """Begin to read what the next pass streams first; the bytes a second that came, 0 where nothing had to."""
        nbytes, seconds = self.weights.prefetch()
        return nbytes / seconds if nbytes else 0.0

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer puts around it.

        Raises TokenizerError, and MemoryCeilingError where there is no room to divide it.
        """
        return self.text_side().encode(text)

    def close(self) -> None:
        """End the reader and free the weights; the model is of no use afterwards."""
        self._runtime.close()
        if self.tokenizer is not None:  # which may outlive it
            self.tokenizer.room = nullcontext

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        drawn: Sequence[int] = (),
        choice: int = 0,
        most_tokens: int | None = None,
        cache: KvCache | None = None,
        adapter: str | None = None,
        shown: Collection[int] = (),
    ) -> Completion:
        """Let a prompt take part in the passes that `step` runs from now on, or as soon as memory has room for it.

        drawn: tokens that an earlier run of the same prompt and parameters drew; it goes on as that one would have.
        choice: several answers to a prompt, of one seed, differ by it. most_tokens: a bound for parameters that have
        none. cache: of this model's `new_cache`, with the keys and values of some of the first tokens; it comes to have
        those of the others, and stays the caller's. adapter: the name of the one to go through; a cache has its own.
        shown: special tokens that are a part of the text.
        The caller takes `pieces`, looks at `error`, and calls `cancel` when it has lost interest.

        Raises UsageError, ContextError, TokenizerError; MemoryCeilingError where it would not fit even by itself.
        """
        params = params or SamplingParams()
        check_adapter(adapter, [*self.adapters])
        tokens, most = self._admissible(prompt, params, most_tokens)
        if cache is not None and cache.length >= len(tokens) + len(drawn):
            raise UsageError("The cache leaves no token to compute.", "Truncate it, or give it more tokens.")
        if cache is not None and adapter not in (None, cache.adapter):
            raise UsageError("The cache is of another adapter.", "Take it from new_cache(adapter).")
        sequence = self.engine.add(
            tokens,
            params,
            most,
            drawn=drawn,
            choice=choice,
            cache=cache,
            adapter=adapter,
            matcher=self._matcher(params),
        )
        try:
            return Completion(sequence, self.tokenizer, params.stops, shown)
        except BaseException:  # nobody has it, so nobody would ever cancel it
            self.engine.cancel(sequence)
            raise

    def check(
        self, prompt: Prompt, params: SamplingParams | None = None, *, most_tokens: int | None = None
    ) -> list[int]:
        """The token ids of a prompt that `submit` would take; raises as it does. Other threads may call this, with text
        where room is kept for it (`longest_text`)."""
        return self._admissible(prompt, params or SamplingParams(), most_tokens)[0]

    def step(self) -> PassStats:
        """One pass for all that was submitted. Raises ReadError, after which the same pass may be tried again, and
        MemoryCeilingError."""
        return self.engine.step()

    def favour_prompts(self) -> None:
        """From now on let prompts wait rather than be computed a few rows a pass, for want of memory: fewer sequences
        share the passes, and fewer passes are needed where prompts are long and answers short."""
        self.engine.scheduler.room_for_prompts = True

    def cancel(self, completion: Completion) -> None:
        """End a completion, if it has not ended, and free its memory."""
        self.engine.cancel(completion.sequence)

    @property
    def busy(self) -> bool:
        """Whether a step would have anything to do."""
        return self.engine.busy

    @property
    def waiting(self) -> int:
        """Submitted prompts that memory has no room for yet."""
        return len(self.engine.scheduler.waiting)

    def _admissible(self, prompt: Prompt, params: SamplingParams, most_tokens: int | None) -> tuple[list[int], int]:
        """The token ids of a prompt, and how many it may yield by itself."""
        tokens = self._checked(prompt, params)
        wanted = params.max_tokens or most_tokens
        return tokens, self.memory.most_tokens([len(tokens)], wanted, self.context, beside_others=False)

    def _start(
        self, prompts: Sequence[Prompt], params: SamplingParams | None, adapter: str | None = None
    ) -> list[Completion]:
        params = params or SamplingParams()
        check_adapter(adapter, [*self.adapters])
        if any(isinstance(p, Mapping) or (not isinstance(p, str) and _are_messages(p)) for p in prompts):
            raise UsageError(
                "These are messages, and stream() and generate() go on with text as it stands.",
                "Give them to chat_stream(messages) or chat(messages), which go through the model's template.",
            )
        if any(isinstance(p, (int, np.integer)) for p in prompts):
            raise UsageError(
                "A list of token ids is one prompt.", "For one prompt: generate([prompt]), or stream(prompt)."
            )
        tokens = [self._checked(p, params) for p in prompts]  # all of them, before any starts
        most_tokens = self._most_tokens([len(prompt) for prompt in tokens], params.max_tokens)
        sequences: list[engine.Sequence] = []
        try:
            for prompt in tokens:
                matcher = self._matcher(params)
                sequences.append(self.engine.add(prompt, params, most_tokens, adapter=adapter, matcher=matcher))
            return [Completion(sequence, self.tokenizer, params.stops) for sequence in sequences]
        except BaseException:  # Ctrl-C among them: none is left to compute for nobody
            for sequence in sequences:
                self.engine.cancel(sequence)
            raise

    def _checked(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """The prompt's token ids; raises what `add` would, and for stop strings without a tokenizer."""
        if params.stops and self.tokenizer is None:
            raise TokenizerError(
                "Stop strings need text, and this checkpoint has no tokenizer.", "Put its tokenizer.json beside it."
            )
        if params.form is not None:
            self.text_side()
            params.form.source()
        tokens = self.text_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        self.engine.check_prompt(tokens)
        return tokens

    def _matcher(self, params: SamplingParams) -> Matcher | None:
        """What holds an answer to its form; a new one for each answer."""
        return None if params.form is None else self._grammars.matcher(params.form)

    def _most_tokens(self, prompts: Sequence[int], wanted: int | None) -> int:
        """How many tokens prompts of these lengths may yield that are given together.

        Where not all fit beside each other, some wait; then each may have what it could by itself. Raises
        MemoryCeilingError where one of them would not fit even so.
        """
        try:
            return self.memory.most_tokens(prompts, wanted, self.context)
        except MemoryCeilingError:
            least = [self.memory.most_tokens([n], wanted, self.context, beside_others=False) for n in prompts]
            return min(least)

    def drive(
        self, completions: Sequence[Completion], after_pass: Callable[[], None] = lambda: None
    ) -> Iterator[Piece]:
        """What passes bring these completions, until all of them have ended; they are cancelled with the iterator.

        `after_pass` is called before what a pass brought is told. Raises what `step` raises, and the error of the first
        completion that ended with one.
        """
        try:
            while True:
                for completion in completions:
                    while completion.pieces:
                        yield completion.pieces.popleft()
                for completion in completions:
                    if completion.error is not None:
                        raise completion.error
                if not any(completion.runs for completion in completions):
                    return
                self.step()
                after_pass()
        finally:
            for completion in completions:
                self.engine.cancel(completion.sequence)

    def text_side(self) -> Tokenizer:
        """The tokenizer. Raises TokenizerError where there is none."""
        if self.tokenizer is None:
            raise TokenizerError(
                "This checkpoint has no tokenizer, so it cannot take or give text.",
                "Give token ids, or put its tokenizer.json and tokenizer_config.json beside config.json.",
            )
        return self.tokenizer
