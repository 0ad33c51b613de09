"""Conversations and texts that go on: keys and values of what was said serve again, and outlive the process.

    with LLM.open(MODEL) as llm, Session(llm, "talk.session") as session:
        for piece in session.ask("What is a penstock?"):
            print(piece.text, end="")

With a path, all that is needed to go on is on the disk after every pass, before the caller sees what it brought: keys
and values, tokens, how they are drawn, and the conversation. Whoever opens it again goes on with the tokens that the
uninterrupted run would have drawn, and computes nothing twice but the last position. That one is a test: its keys and
values depend on all that counts, so they come out as they were with the same model only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.completion import Piece, Stats
from penstock.errors import ContextError, PenstockError, SessionError, UsageError
from penstock.sampling import SamplingParams
from penstock.sessions.follow_up import appended, common_length, extended
from penstock.sessions.log import NewRecord, SessionLog
from penstock.sessions.session_model import SessionModel
from penstock.sessions.state import PASS, TOLD, TURN, Turn, read_log

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from penstock.completion import Completion
    from penstock.llm import LLM
    from penstock.sessions.state import Message

SLACK_BYTES = 1 << 20
"""A file may be twice as large as what it holds, and so much larger, before it is written anew."""


class Session:
    """One conversation, or one text, with a model. A context manager that closes itself."""

    def __init__(self, llm: LLM, path: str | os.PathLike[str] | None = None, adapter: str | None = None) -> None:
        """Begin a session, or go on with the one in the file `path`; without a path it ends with the process. All of it
        goes through `adapter`, one of the model's.

        Raises SessionError where the file is damaged, in use, or of another model, adapter, KV type or version;
        MemoryCeilingError where its keys and values do not fit; UsageError where `path` is not a file's.
        """
        self.turn: Turn | None = None
        """The latest prompt and its answer."""
        self.system: str | None = None
        """What the model is told before the conversation, from the next question on; an open file brings its own."""
        self._llm = llm
        self._cache = llm.new_cache(adapter)
        self._running: Completion | None = None
        self._closed = False
        self._saved_turn: Turn | None = None
        """The turn that the file's records are of; None where that is open, since Ctrl-C came as one was written."""
        self._saved = 0
        """Positions whose keys and values are in the file, at least."""
        self._saved_tokens = 0
        self._proof: tuple[int, bytes] | None = None
        """A position behind the cache's that is to be computed again, and its keys and values."""
        self._log = None if path is None else SessionLog(Path(path))
        self._model = SessionModel(llm, None if adapter is None else llm.adapters[adapter], self._name)
        try:
            if self._log is not None:
                self._open(self._log)
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, params: SamplingParams | None = None) -> Iterator[Piece]:
        """The answer to one more message of the user, a piece after every pass that drew something.

        An answer that was not finished stays as far as it came; one that had not begun goes, and its question with it.
        Raises as LLM.submit does, ChatTemplateError besides, and SessionError where the file has no room.
        """
        return self._ask([*self.messages, {"role": "user", "content": question}], params)

    def retry(self, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Another answer to the last question, in place of the one that there is; of its keys and values none are
        computed again. Raises as `ask` does, and UsageError where nothing was asked."""
        return self._ask(self._asked()[1], params)

    def undo(self) -> str:
        """Take back the last question and its answer; what was asked.

        Raises UsageError where nothing was asked, ChatTemplateError, and SessionError where the file has no room.
        """
        self._check_open()
        undone, (*before, question) = self._asked()
        self._end_running()
        if all(message["role"] == "system" for message in before):
            self.reset()
            return str(question["content"])
        *asked, answer = before
        tokenizer = self._llm.text_side()
        text = tokenizer.chat_template().render(before, add_generation_prompt=False)
        prompt = extended(tokenizer, self.tokens, text, self._llm.most_prompt)
        kept = self._keep_common(prompt)
        try:
            self.turn = turn = Turn.answered(asked, prompt, answer["content"], later=undone)
            self._save_turn(turn, kept)
            self._save(turn)
            self.told()
        except PenstockError:
            self.turn = undone
            raise
        return str(question["content"])

    def _asked(self) -> tuple[Turn, list[Message]]:
        """The latest turn, and the conversation up to its question. Raises UsageError where there is none."""
        if self.turn is None or self.turn.messages is None:
            raise UsageError("Nothing has been asked yet.", "Ask something first.")
        return self.turn, self.turn.messages

    def _ask(self, messages: list[Message], params: SamplingParams | None) -> Iterator[Piece]:
        """The answer to a conversation, behind what the model is told before it."""
        if self.turn is not None and self.turn.messages is None:
            raise UsageError(f"{self._name} holds a text, not a conversation.", "Go on with it: --raw, or complete().")
        said = [message for message in messages if message["role"] != "system"]
        messages = [*([{"role": "system", "content": self.system}] if self.system else []), *said]
        tokenizer, most = self._llm.text_side(), self._llm.most_prompt
        text = tokenizer.chat_template().render(messages, check_length=tokenizer.length_check(most))
        prompt = extended(tokenizer, self.tokens, text, most)
        return self._begin(prompt, params, messages, messages[-1]["content"])

    def complete(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[Piece]:
        """What follows on all that is there and `prompt`, text or token ids; for models without a chat template.

        Raises as `ask` does.
        """
        if self.turn is not None and self.turn.messages is not None:
            raise UsageError(f"{self._name} holds a conversation, not a text.", "Go on without --raw, or by ask().")
        if isinstance(prompt, str):
            tokens = appended(self._llm.text_side(), self.tokens, prompt, self._llm.most_prompt)
            asked = prompt
        else:
            tokens, asked = [*self.tokens, *map(int, prompt)], ""
        return self._begin(tokens, params, None, asked)

    def go_on(self) -> Iterator[Piece]:
        """The rest of an answer that was not finished; the first piece is what had come already.

        It ends where it would have ended. Raises UsageError where there is none, MemoryCeilingError and ContextError
        where there is less room than it began with.
        """
        turn = self.turn
        if turn is None or not turn.unfinished:
            raise UsageError("There is no unfinished answer to go on with.", "Give a prompt.")
        self._check_open()
        self._end_running()
        if len(turn.prompt) + turn.limit > self._llm.context:
            raise ContextError(
                f"The answer began with room for {turn.limit} tokens after the prompt's {len(turn.prompt)}, and a "
                f"context of {self._llm.context} has not so much.",
                "Raise `context` to go on with it, or give another prompt.",
            )
        self._cache.truncate(min(self._cache.length, len(turn.tokens) - 1))
        completion = self._llm.submit(
            turn.prompt, turn.params, drawn=turn.drawn, most_tokens=turn.limit, cache=self._cache
        )
        try:
            turn.end = None
            return self._answer(turn, completion)
        except BaseException:
            self._llm.cancel(completion)
            raise

    def retell(self) -> Iterator[Piece]:
        """A finished answer once more, as one piece."""
        turn = self.turn
        if turn is not None:
            stats = Stats(len(turn.prompt), turn.params.seed or 0)
            yield Piece(turn.answer(self._llm.tokenizer), turn.drawn, turn.end, stats)

    def stop(self) -> None:
        """End an unfinished answer where it is; `go_on` would still go on with it."""
        turn = self.turn
        self._end_running()
        if turn is not None and turn.end is None and not self._closed:
            turn.text, turn.end = turn.answer(self._llm.tokenizer), "cut"
            self._save(turn)

    def told(self) -> None:
        """The caller has shown a finished answer: it need not be retold. Nothing is done where it is not finished."""
        turn = self.turn
        if turn is not None and not turn.told and not turn.unfinished:
            turn.told = True
            if self._log is not None:
                if self._saved_turn is not turn:
                    self._save(turn)
                self._log.append(NewRecord(TOLD, {}), sync=False)

    def reset(self) -> None:
        """Forget all that was said."""
        self._check_open()
        self._end_running()
        self._saved_turn, self._saved, self._saved_tokens = None, 0, 0
        if self._log is not None:
            self._log.rewrite([self._model.record()])
        self.turn = self._proof = None
        self._cache.truncate(0)

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, a copy; a part of an answer counts as one."""
        turn = self.turn
        if turn is None or turn.messages is None:
            return []
        if not turn.drawn and turn.end in (None, "cut"):
            return turn.messages[:-1]
        return [*turn.messages, {"role": "assistant", "content": turn.answer(self._llm.tokenizer)}]

    @property
    def tokens(self) -> list[int]:
        """All that was said, as tokens; those of a question without an answer included."""
        return [] if self.turn is None else self.turn.tokens

    @property
    def unfinished(self) -> bool:
        """Whether there is an answer to go on with."""
        return self.turn is not None and self.turn.unfinished

    @property
    def rows_to_come(self) -> int:
        """How many rows the next pass computes, but for guesses, where it goes on with the answer."""
        return len(self.tokens) - self._cache.length

    def close(self) -> None:
        """End what runs, free the keys and values, and let others have the file."""
        self._closed = True
        self._end_running()
        self._cache.truncate(0)
        self._llm.chain.settle()
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("This session has been closed.", "Open it again.")

    @property
    def _name(self) -> str:
        return "This session" if self._log is None else str(self._log.path)

    def _begin(
        self, prompt: list[int], params: SamplingParams | None, messages: list[Message] | None, asked: str
    ) -> Iterator[Piece]:
        """A new turn, on the disk before its first pass."""
        self._check_open()
        params = params or SamplingParams()
        self._llm.check(prompt, params)
        self._end_running()
        kept = self._keep_common(prompt)
        before, completion = self.turn, self._llm.submit(prompt, params, cache=self._cache)
        try:
            completion.sequence.stores_prompt = self._log is None  # else all of it is in the file
            self.turn = turn = Turn.begun(messages, asked, completion.sequence, params)
            self._save_turn(turn, kept)
            return self._answer(turn, completion)
        except BaseException as error:
            self._llm.cancel(completion)
            if isinstance(error, Exception):  # and not Ctrl-C, which may have come when it was on the disk
                self.turn = before
            raise

    def _keep_common(self, prompt: list[int]) -> int:
        """Cut the cache back to what `prompt` has in common with all that was said; how many positions stay."""
        common = common_length(self.tokens, prompt)
        if self._proof is not None and self._proof[0] >= common:
            self._proof = None
        kept = min(self._cache.length, common, len(prompt) - 1)
        self._cache.truncate(kept)
        self._saved = min(self._saved, kept)  # what the file has behind is not of this turn, wherever Ctrl-C comes
        return kept

    def _answer(self, turn: Turn, completion: Completion) -> Iterator[Piece]:
        """Run the passes of an answer: each is on the disk before what it brought is told."""
        self._running = completion
        return self._pieces(turn, completion)

    def _pieces(self, turn: Turn, completion: Completion) -> Iterator[Piece]:
        try:
            if not completion.runs:  # what it had drawn already is all
                self._take(turn, completion)
            yield from self._llm.drive([completion], partial(self._take, turn, completion))
        finally:
            if self._running is completion:
                self._end_running()

    def _take(self, turn: Turn, completion: Completion) -> None:
        turn.drawn = list(completion.sequence.token_ids)
        if completion.error is None and not completion.runs:
            output = completion.output()
            turn.text, turn.end = output.text, output.finish_reason
        self._save(turn)

    def _end_running(self) -> None:
        """Take the answer that runs out of the passes; what it drew last may not be saved yet."""
        completion = self._running
        if completion is None:
            return
        if self.turn is not None and self.turn.end is None:
            self.turn.drawn = list(completion.sequence.token_ids)
        self._llm.cancel(completion)
        self._running = None  # at last: wherever Ctrl-C comes, it can be done again

    def _check_proof(self) -> None:
        """Raise SessionError where the position that was computed again has other keys and values than it had."""
        if self._proof is None or self._cache.length <= self._proof[0]:
            return
        position, data = self._proof
        if self._llm.chain.read_slot(self._cache, position) != data:
            self.close()
            raise SessionError(
                f"{self._name} was made with other weights: these give position {position} other keys and values.",
                "Open it with the model that made it, or begin another session.",
            )
        self._proof = None

    def _save_turn(self, turn: Turn, kept: int) -> None:
        """Have a turn on the disk that begins with `kept` positions; the file is written anew where most of it is of
        no use any more."""
        log = self._log
        # Of what there was and of what there will be, this holds wherever Ctrl-C comes.
        self._saved_turn, self._saved, self._saved_tokens = None, min(self._saved, kept), 0
        if log is not None and log.size > 2 * kept * self._llm.kv_shape.slot_bytes + SLACK_BYTES:
            begun = NewRecord(TURN, turn.as_json(0))
            log.rewrite([self._model.record(), begun, self._pass_record(turn, 0, kept)])
            self._saved = kept
        elif log is not None:
            if log.is_new:
                log.append(self._model.record())
            log.append(NewRecord(TURN, turn.as_json(self._saved)))
        self._saved_turn = turn

    def _save(self, turn: Turn) -> None:
        """Have what is new on the disk: positions, tokens, and why the answer ended."""
        # Positions that are lost with a stage come again, as they were.
        self._llm.engine.enduring(lambda: self._save_reached(turn))

    def _save_reached(self, turn: Turn) -> None:
        self._check_proof()
        length, count = min(self._cache.length, len(turn.tokens)), len(turn.drawn)
        if self._log is not None and self._saved_turn is not turn:
            self._save_turn(turn, length)
        # A stop string takes back tokens, and Ctrl-C may have come before it did.
        self._saved, self._saved_tokens = min(self._saved, len(turn.tokens)), min(self._saved_tokens, count)
        if self._log is not None and (length > self._saved or count > self._saved_tokens or turn.end):
            self._log.append(self._pass_record(turn, self._saved, max(self._saved, length)))
        self._saved, self._saved_tokens = max(self._saved, length), count

    def _pass_record(self, turn: Turn, begin: int, end: int) -> NewRecord:
        """Positions, and all tokens that are not in the file yet."""
        first = self._saved_tokens
        meta = {"at": begin, "first": first, "drawn": turn.drawn[first:], "end": turn.end}
        meta["text"] = turn.text if turn.end else ""
        slots = self._llm.chain.read_slots(self._cache, begin, end)
        return NewRecord(PASS, meta, slots, (end - begin) * self._llm.kv_shape.slot_bytes)

    def _open(self, log: SessionLog) -> None:
        """Take in what the file holds."""
        if log.is_new:
            return
        held = read_log(log, self._llm.kv_shape.slot_bytes, self._llm.config.vocab_size, self._model.check)
        self.turn = held.turn
        if held.turn is None:
            return
        self._saved_turn, self._saved, self._saved_tokens = held.turn, held.positions, len(held.turn.drawn)
        self.system = held.turn.system
        self._llm.chain.make_room(self._llm.memory.need_to_fill(self._cache, held.positions))
        self._llm.chain.append_slots(self._cache, held.slots(log))
        if held.positions:
            last = held.positions - 1
            self._proof = last, self._llm.chain.read_slot(self._cache, last)
            self._cache.truncate(last)
