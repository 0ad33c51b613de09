"""Every error that Penstock raises on purpose.

PenstockError
├── UsageError                 wrong use: an option, an argument, a call (the command line exits with 2)
│   ├── ContextError           a prompt, or a prompt and its answer, longer than the context
│   ├── MemoryCeilingError     a ceiling too small for the model; names the least that works
│   └── GrammarError           an answer that cannot follow its grammar any further
├── CheckpointError            the model directory cannot be used
│   ├── FormatError            a file that breaks its format's rules: lying, truncated or overlapping headers
│   └── UnsupportedError       a sound checkpoint of a kind that Penstock does not run
├── TokenizerError             text was asked of a checkpoint that has no tokenizer, or a broken one
│   └── ChatTemplateError      the chat template is missing, malformed, or rejects the conversation
├── ReadError                  the disk failed in the middle of a run
│   └── ChecksumError          bytes of a packed model that are not those that were written
├── ClusterError               another machine that takes part: out of reach, or not as it is here
│   └── StageLostError              some layers of a model are gone, with their keys and values
├── SessionError               a session's file that cannot be used: damaged, in use, another model's, no room
├── NumericsError              a logit that is not a number
└── InternalError              a fault of Penstock's own, kept to the one sequence or request that it met
"""

from __future__ import annotations

import logging


class PenstockError(Exception):
    """Base of all errors raised on purpose.

    `problem` says what is wrong and why, `remedy` what to do about it; each is one line.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def at(self, place: str) -> PenstockError:
        """The same error, which says that it happened on another machine."""
        told = type(self)(f"{place}: {self.problem}", self.remedy)
        told.__cause__ = self
        return told

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class UsageError(PenstockError):
    """An option, an argument or a call that cannot be meant."""


class ContextError(UsageError):
    """A prompt, or a prompt and its answer, longer than the context."""


class MemoryCeilingError(UsageError):
    """A memory ceiling too small for the model."""


class CheckpointError(PenstockError):
    """A model directory that cannot be used."""


class FormatError(CheckpointError):
    """A file that breaks its format's rules."""


class UnsupportedError(CheckpointError):
    """A sound checkpoint of a kind that Penstock does not run."""


class TokenizerError(PenstockError):
    """Text was asked of a checkpoint that has no tokenizer, or a broken one."""


class ChatTemplateError(TokenizerError):
    """A chat template that is missing, malformed, or rejects the conversation."""


class ReadError(PenstockError):
    """The disk failed in the middle of a run."""


class ChecksumError(ReadError):
    """Bytes of a packed model that are not those that were written."""


class ClusterError(PenstockError):
    """Another machine that takes part cannot be reached, or is not as it has to be."""


class StageLostError(ClusterError):
    """What held some layers of a model is gone, and keys and values with it."""


class SessionError(PenstockError):
    """A session's file that cannot be read, written, or gone on with."""


class NumericsError(PenstockError):
    """A logit that is not a number."""


class GrammarError(UsageError):
    """An answer that cannot follow its grammar any further."""


class InternalError(PenstockError):
    """A fault of Penstock's own, kept to the one sequence or request that it met; `__cause__` has the traceback."""

    @classmethod
    def of(cls, error: Exception) -> PenstockError:
        """What ended a sequence or a request, as an error of Penstock's; one that is such already stays itself, others
        are logged with their traceback, since not everybody who is told of them shows it."""
        if isinstance(error, PenstockError):
            return error
        logging.getLogger(__name__).error("A fault of Penstock's own", exc_info=error)
        said = (str(error).splitlines() or [""])[0][:200]
        told = cls(
            f"A fault of Penstock's own ended this: {type(error).__name__}{': ' * bool(said)}{said}",
            "Please report it, with the traceback. Everything else goes on.",
        )
        told.__cause__ = error
        return told


class ClusterWarning(UserWarning):
    """Machines of a cluster that are of no use."""


class CheckpointWarning(UserWarning):
    """Something in a checkpoint that Penstock passes over."""
