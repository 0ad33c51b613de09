"""An open model: prompts go in, passes run, completions come out; and what it knows of itself.

Server, batches and sessions run passes of their own by it; who asks and waits for the answer has `LLM` (llm.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from penstock.adapters.named import check_adapter
from penstock.completion import Completion
from penstock.errors import UsageError
from penstock.grammars.compiler import GrammarCompiler
from penstock.known_model import KnownModel
from penstock.memory.budget import Demand
from penstock.memory.text_room import BYTES_TO_TOKENIZE, TextRoom
from penstock.models.kv_planes import KvShape
from penstock.options import OpenOptions
from penstock.runtime import Runtime
from penstock.sampling import SamplingParams
from penstock.system import machine

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from penstock.adapters.adapter import Adapter
    from penstock.grammars.matcher import Matcher
    from penstock.known_model import Prompt
    from penstock.memory.budget import Plan
    from penstock.models.chain import Chain
    from penstock.models.decoder import Decoder
    from penstock.models.kv_cache import KvCache
    from penstock.models.pass_stats import PassStats
    from penstock.models.stage import OnLayer, Stage
    from penstock.speculate.draft_model import DraftModel
    from penstock.weights.weights import Weights


class OpenModel(KnownModel):
    """Not to be used by two threads at once."""

    def __init__(self, model: Path | KnownModel, options: OpenOptions, on_layer: OnLayer | None = None) -> None:
        """The model in a directory, or one that is known already, with the same options; `LLM.open` takes names and
        sizes as people write them."""
        machine.return_large_arrays()
        available = machine.available_bytes()
        known = model if isinstance(model, KnownModel) else KnownModel.read(model, options)
        super().__init__(known.checkpoint, known.context, known.defaults, known.tokenizer)
        machine.trim_heap()
        runtime = Runtime(known.checkpoint, options, available, self.defaults)
        self._runtime, self.engine = runtime, runtime.engine
        self.config, self.architecture = runtime.config, runtime.architecture
        self.kernels, self.events, self.memory = runtime.kernels, runtime.events, runtime.memory
        self.on_layer = on_layer
        self._makes_room = self.tokenizer is not None and options.longest_text is None
        if self.tokenizer is not None and self._makes_room:
            self.tokenizer.room = TextRoom(self.engine.make_room_beside)
        self._grammars = GrammarCompiler(
            str if self.tokenizer is None else self.tokenizer.to_json,  # not of self: a closed model goes at once
            self.config.vocab_size,
            self.defaults.eos_token_ids,
            self.engine.make_room_beside,
        )
        self.memory.caches.tellers.add(self._grammars)

    @property
    def weights(self) -> Weights:
        """Those that this process holds, of its first stage."""
        return self._runtime.weights[0]

    @property
    def model(self) -> Decoder:
        """What computes the layers of that stage."""
        return self._runtime.stages[0].decoder

    @property
    def chain(self) -> Chain:
        """All stages."""
        return self.engine.chain

    @property
    def on_layer(self) -> OnLayer | None:
        """Called as (layer, read_seconds, wait_seconds, compute_seconds) after each layer of each pass."""
        return self._runtime.stages[0].on_layer

    @on_layer.setter
    def on_layer(self, listener: OnLayer | None) -> None:
        self._runtime.listen(listener)

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
        ends: Collection[int] = (),
        continues: bool = False,
    ) -> Completion:
        """Let a prompt take part in the passes that `step` runs from now on, or as soon as memory has room for it.

        drawn: tokens that an earlier run of the same prompt and parameters drew; it goes on as that one would have.
        choice: several answers to a prompt, of one seed, differ by it. most_tokens: a bound for parameters that have
        none. cache: of this model's `new_cache`, with the keys and values of some of the first tokens; it comes to have
        those of the others, and stays the caller's. adapter: the name of the one to go through; a cache has its own.
        shown: special tokens that are a part of the text. ends: tokens that end it, besides the model's own. continues:
        the text goes on with the prompt's (Completion).
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
            ends=ends,
        )
        try:
            return Completion(sequence, self.tokenizer, params.stops, shown, continues=continues)
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

    def check_length(self, characters: int) -> None:
        """Raise TokenizerError, ContextError or MemoryCeilingError where no prompt may have so many characters."""
        self.text_side().check_length(characters, self.most_prompt)
        self.memory.check_tokenizing(BYTES_TO_TOKENIZE * characters)

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

    def close(self) -> None:
        """End the reader and free the weights; the model is of no use afterwards."""
        self._runtime.close()
        if self.tokenizer is not None and self._makes_room:  # the tokenizer may outlive it
            self.tokenizer.room = nullcontext

    def _admissible(self, prompt: Prompt, params: SamplingParams, most_tokens: int | None) -> tuple[list[int], int]:
        """The token ids of a prompt, and how many it may yield by itself."""
        tokens = self._checked(prompt, params)
        wanted = params.max_tokens or most_tokens
        return tokens, self.memory.most_tokens([len(tokens)], wanted, self.context, beside_others=False)

    def _matcher(self, params: SamplingParams) -> Matcher | None:
        """What holds an answer to its form; a new one for each answer."""
        return None if params.form is None else self._grammars.matcher(params.form)
