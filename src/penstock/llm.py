"""The Python interface: complete text, chat, look at logits and at how likely texts are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.adapters.named import check_adapter
from penstock.checkpoints.store import find_model
from penstock.completion import Completion, Output, Piece
from penstock.embedding import embed
from penstock.errors import ContextError, MemoryCeilingError, UsageError
from penstock.models.rows import Rows, SequenceRows
from penstock.models.tokens import check_tokens
from penstock.open_model import OpenModel
from penstock.options import OpenOptions
from penstock.sampling import SamplingParams
from penstock.scoring import Scorer, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from penstock.compute.kernels import F32
    from penstock.embedding import Pooling
    from penstock.engine import sequence as engine
    from penstock.known_model import Message, Prompt
    from penstock.models.kv_cache import KvCache
    from penstock.models.stage import OnLayer
    from penstock.scoring import Scorable, Score


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and any(isinstance(one, Mapping) for one in prompt)


class LLM(OpenModel):
    """A model that is ready to run. Not to be used by two threads at once; a context manager that closes itself."""

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
        cluster: str | None = None,
        cut: str | None = None,
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
            cluster=cluster,
            cut=cut,
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

    def fill_in(
        self, prefix: str, suffix: str, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Output:
        """What belongs between two texts, by a model that was trained to fill in the middle.

        Special tokens that are spelled out in the texts are plain text. Raises TokenizerError where the tokenizer has
        no tokens for that, and as `stream` does.
        """
        completions = self._start_infilling(prefix, suffix, params, adapter)
        for _ in self.drive(completions):
            pass
        return completions[0].output()

    def fill_in_stream(
        self, prefix: str, suffix: str, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Iterator[Piece]:
        """As `fill_in`, a piece after every pass that drew something."""
        yield from self.drive(self._start_infilling(prefix, suffix, params, adapter))

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
            return self.engine.enduring(lambda: self._all_logits(cache, tokens))
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

    def _all_logits(self, cache: KvCache, tokens: list[int]) -> F32:
        slots, most = len(tokens), self.engine.scheduler.max_rows
        if slots <= min(most, self.memory.most_rows({cache: slots}, 0, all_logits=True, wanted=slots)):
            return self._chunk_logits(cache, tokens, 0)
        step = min(most, self.memory.most_rows({cache: slots}, slots, all_logits=True))
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

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_infilling(
        self, prefix: str, suffix: str, params: SamplingParams | None, adapter: str | None
    ) -> list[Completion]:
        tokens = self.infilling_prompt(prefix, suffix)
        return self._start([tokens], params, adapter, self.infilling.ends)

    def _start(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None,
        adapter: str | None = None,
        ends: Collection[int] = (),
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
                sequences.append(
                    self.engine.add(prompt, params, most_tokens, adapter=adapter, matcher=matcher, ends=ends)
                )
            # Token ids may be those of a chat, whose answer begins anew.
            return [
                Completion(sequence, self.tokenizer, params.stops, continues=bool(ends) or isinstance(prompt, str))
                for sequence, prompt in zip(sequences, prompts, strict=True)
            ]
        except BaseException:  # Ctrl-C among them: none is left to compute for nobody
            for sequence in sequences:
                self.engine.cancel(sequence)
            raise

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
