"""The models of a server: all of them are known, and at most one is open, so that each has the whole ceiling."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.adapters.places import adapter_places
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.store import find_model
from penstock.errors import CheckpointError, UsageError
from penstock.known_model import KnownModel
from penstock.llm import LLM
from penstock.openai_api.requests import check_model
from penstock.options import OpenOptions
from penstock.speculate.draft_model import check_same_tokens
from penstock.system import machine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from penstock.models.stage import OnLayer

GROWTH_BYTES = 8 << 20
"""What a process that has served takes more than one that has not, 3 MiB as measured: with so much left at the start, a
model that could be opened then can be opened again."""


class Shelf:
    """Models by the names that requests have for them; a context manager that closes what is open.

    The engine's thread alone opens models and uses the open one. Others may ask what is known, and where they divide
    texts or look at the open model's memory, they hold `still` meanwhile.
    """

    def __init__(self, models: Mapping[str, KnownModel], options: OpenOptions, llm: LLM | None = None) -> None:
        """`options`: how each is opened; `llm`: the first of the models, where it is open already."""
        self._known = dict(models)
        self._options = options
        self._llm = llm
        self._open: str | None = None if llm is None else next(iter(self._known))
        self._lock = threading.Lock()
        self.adapters: Mapping[str, Path] = adapter_places(options.adapters)
        """Of the one model, by name."""

    @classmethod
    def read(cls, models: Mapping[str, str], options: OpenOptions) -> Shelf:
        """The models that these names stand for; none is open yet. Raises CheckpointError and its kin, UsageError."""
        if len(models) > 1 and options.adapters:
            raise UsageError(
                "An adapter is of one model, and several are served.",
                "Leave --adapter out, or serve the adapter's model by itself.",
            )
        known = {name: KnownModel.read(find_model(model), options) for name, model in models.items()}
        if len(models) > 1 and options.draft_model is not None:
            draft = open_checkpoint(find_model(options.draft_model))
            for model in known.values():
                check_same_tokens(draft.path, draft.config, model.path, model.config)
        return cls(known, options)

    @classmethod
    def holding(cls, name: str, llm: LLM) -> Shelf:
        """A shelf of one model, which is open already."""
        places = tuple(f"{adapter}={one.path}" for adapter, one in llm.adapters.items())
        return cls({name: llm}, OpenOptions(adapters=places), llm)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models, as they were given."""
        return tuple(self._known)

    @property
    def several(self) -> bool:
        return len(self._known) > 1

    @property
    def current(self) -> str:
        """The model that answers requests which name none: the one that is open or is being opened, else the first."""
        return self._open or self.names[0]

    @property
    def llm(self) -> LLM | None:
        """The one that is open."""
        return self._llm

    @property
    def still(self) -> AbstractContextManager[object]:
        """Within this, no model is opened or closed."""
        return self._lock if self.several else nullcontext()

    def is_open(self, name: str) -> bool:
        return self._llm is not None and name == self._open

    def named(self, wanted: str | None) -> tuple[str, str | None]:
        """The model that a request names, and its adapter where it names that. Raises RequestError for other names."""
        check_model(wanted, *self._known, *self.adapters)
        if wanted in self.adapters:
            return self.current, wanted
        return wanted or self.current, None

    def model(self, name: str) -> KnownModel:
        """One of them, with what it is when open where it is; to be asked for, and let go, within `still`."""
        return self._llm if self._llm is not None and name == self._open else self._known[name]

    def known(self, name: str) -> KnownModel:
        """One of them, open or not."""
        return self._known[name]

    def open_first(self) -> None:
        """Open the first, just as it was read. Raises as `LLM.open` does."""
        name, options = self.names[0], self._options
        if self.several:
            options = replace(options, reserve=options.reserve + GROWTH_BYTES)
        self._llm, self._open = LLM(self._known[name], options), name

    def open(self, name: str, on_layer: OnLayer) -> LLM:
        """Close the model that is open, and open another. Raises as `LLM.open` does, and then none is open."""
        with self.still:
            self.close()
            self._open = name
            try:
                self._llm = LLM(self._read_again(name), self._options, on_layer)
            except BaseException:
                self._open = None
                raise
            return self._llm

    def close(self) -> None:
        """Close the model that is open, and give its memory back."""
        if self._llm is None:
            return
        self._llm.close()
        self._llm = self._open = None
        gc.collect()  # an error that a pass raised, and that somebody still has, leads back to the engine
        machine.trim_heap()

    def _read_again(self, name: str) -> KnownModel:
        """A model whose files may have been changed since they were read. Raises CheckpointError where it is another
        one by now."""
        known = self._known[name]
        checkpoint = open_checkpoint(known.path)
        if checkpoint.config != known.checkpoint.config:
            problem = f"{known.path} holds another model than when the server began."
            raise CheckpointError(problem, "Start the server anew.")
        return KnownModel(checkpoint, known.context, known.defaults, known.tokenizer)

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
