"""A model as far as it is known without its weights: how texts become prompts of it, and which prompts it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from penstock.checkpoints.checkpoint import generation_defaults, open_checkpoint
from penstock.embedding import check_embedded
from penstock.errors import TokenizerError
from penstock.memory.budget import check_context
from penstock.memory.text_room import TextRoom
from penstock.models.tokens import check_prompt
from penstock.sampling import SamplingParams
from penstock.text.infilling import Infilling
from penstock.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.options import OpenOptions

    Prompt = str | Sequence[int]
    Message = Mapping[str, Any]


class KnownModel:
    """What its files tell: their headers, its config and its tokenizer. Threads may share it."""

    def __init__(
        self, checkpoint: Checkpoint, context: int, defaults: GenerationDefaults, tokenizer: Tokenizer | None
    ) -> None:
        """`context`: most positions of a sequence. Use `read`."""
        self.checkpoint, self.context = checkpoint, context
        self.path, self.files, self.tensors = checkpoint.path, checkpoint.files, checkpoint.tensors
        self.config = checkpoint.config.for_context(context)
        self.defaults = defaults
        self.tokenizer = tokenizer

    @classmethod
    def read(cls, path: Path, options: OpenOptions) -> KnownModel:
        """The model in a directory, or in a GGUF file. Raises CheckpointError and its kin, UsageError."""
        checkpoint = open_checkpoint(path)
        context = check_context(options.context, checkpoint.config)
        tokenizer = Tokenizer.open(path)
        if tokenizer is not None and options.longest_text is not None:
            tokenizer.room = TextRoom(kept=options.longest_text)
        return cls(checkpoint, context, generation_defaults(path), tokenizer)

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer is not None and self.tokenizer.has_chat_template

    def text_side(self) -> Tokenizer:
        """The tokenizer. Raises TokenizerError where there is none."""
        if self.tokenizer is None:
            raise TokenizerError(
                "This checkpoint has no tokenizer, so it cannot take or give text.",
                "Give token ids, or put its tokenizer.json and tokenizer_config.json beside config.json.",
            )
        return self.tokenizer

    def chat_prompt(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """The token ids of a conversation, ready for the answer."""
        return self.text_side().apply_chat_template(messages, most_tokens=self.most_prompt, **template)

    def text_prompt(self, text: str) -> list[int]:
        """The token ids of a text, as `encode` gives them; raises ContextError where it is too long for a prompt in any
        case, before it is divided."""
        return self.text_side().encode(text, most_tokens=self.most_prompt)

    @cached_property
    def infilling(self) -> Infilling:
        """How the model is asked for what belongs into a gap. Raises TokenizerError where it cannot be."""
        return Infilling(self.text_side())

    def infilling_prompt(self, prefix: str, suffix: str) -> list[int]:
        """The token ids after which the model writes what belongs between two texts; `infilling.ends` end that."""
        return self.infilling.prompt(prefix, suffix, most_tokens=self.most_prompt)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer puts around it.

        Raises TokenizerError, and MemoryCeilingError where there is no room to divide it.
        """
        return self.text_side().encode(text)

    @property
    def most_prompt(self) -> int:
        """Tokens of the longest prompt that the context has room for, beside one token of an answer."""
        return self.context - 1

    def check(
        self, prompt: Prompt, params: SamplingParams | None = None, *, most_tokens: int | None = None
    ) -> list[int]:
        """The token ids of a prompt that the model takes, as far as that is known: what memory has room for, only an
        open one knows. Raises UsageError, ContextError, TokenizerError."""
        return self._checked(prompt, params or SamplingParams())

    def check_embedded(self, text: Prompt, pooling: str) -> list[int]:
        """The token ids of a text that `LLM.embed` would take; raises as it does."""
        tokens = self.encode(text) if isinstance(text, str) else list(text)
        check_embedded(tokens, pooling, self.config.vocab_size, self.context)
        return tokens

    def _checked(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """The prompt's token ids; raises what the engine would, and for stop strings without a tokenizer."""
        if params.stops and self.tokenizer is None:
            raise TokenizerError(
                "Stop strings need text, and this checkpoint has no tokenizer.", "Put its tokenizer.json beside it."
            )
        if params.form is not None:
            self.text_side()
            params.form.source()
        tokens = self.text_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        check_prompt(tokens, self.config.vocab_size, self.context)
        return tokens
