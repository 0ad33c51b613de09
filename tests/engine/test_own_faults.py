"""A sequence whose own part of the work raises, whatever that is: it ends with it, and nobody else notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.assembled import GREEDY, limited, open_engine
from helpers.cases import CASES, random_tokens
from helpers.guessing import Scripted, finish, speculate
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.engine import sequence as sequences
from penstock.engine.engine import Engine
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.errors import InternalError, NumericsError, PenstockError, ReadError
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.speculate.lookup import Lookup
from penstock.speculate.recycling import Recycling
from penstock.speculate.speculator import Record, Speculator

VOCAB, TOKENS = 96, 7
TEXT = random_tokens(3 * BLOCK_SLOTS + 5, VOCAB)
VICTIM = [*TEXT, 1, 2]
COMPANY = [[*TEXT, 3], [*TEXT[: 2 * BLOCK_SLOTS], 4, 5, 6, 7], random_tokens(9, VOCAB, seed=3)]
"""The first two take over keys and values from others, the victim's among them."""
ERRORS = [
    ZeroDivisionError("no\nreason"),
    OverflowError(),
    MemoryError(),
    RecursionError(),
    StopIteration(),
    OSError(5),
]
OWN = [NumericsError("No number."), ReadError("No disk.")]


class Fault:
    """Raises an error in one step of one sequence's work, from its call number `after` on."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        self.victim: Sequence | None = None
        self.error = error
        self.left = after
        self.met = 0

    def meet(self, whose: object) -> None:
        if whose is self.victim:
            self.left -= 1
            if self.left < 0:
                self.met += 1
                raise self.error


def break_method(patch: pytest.MonkeyPatch, fault: Fault, owner: type, name: str) -> None:
    """`owner`: Sequence, whose methods are their sequence's, or Engine or Scheduler, whose methods take it first."""
    real = getattr(owner, name)
    inner = real.fget if isinstance(real, property) else real

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        fault.meet(self if owner is Sequence else args[0])
        return inner(self, *args, **options)

    patch.setattr(owner, name, property(broken) if isinstance(real, property) else broken)


def break_sampler(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    """The victim's, as a forged parameter would."""
    real = Sequence.draw

    def draw(self: Sequence, logits: Any) -> Any:
        if self is fault.victim and not hasattr(self.sampler, "fault"):
            sampler: Any = self.sampler

            class Broken:
                fault, rule, seed = True, sampler.rule, sampler.seed
                takes_likeliest = sampler.takes_likeliest
                rank = sampler.rank

                def __call__(self, *args: Any) -> int:
                    fault_.meet(fault_.victim)
                    return int(sampler(*args))

                def best(self, *args: Any) -> int:
                    fault_.meet(fault_.victim)
                    return int(sampler.best(*args))

            fault_ = fault
            self.sampler = Broken()  # type: ignore[assignment]
        return real(self, logits)

    patch.setattr(Sequence, "draw", draw)


def break_record(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    real = Record.take

    def take(self: Record, *args: Any) -> None:
        if fault.victim is not None and self is fault.victim.guesses:
            fault.meet(fault.victim)
        real(self, *args)

    patch.setattr(Record, "take", take)


def break_logprobs(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Nobody else asks for any."""

    def token_logprobs(*_: Any) -> None:
        fault.meet(fault.victim)

    patch.setattr(sequences, "token_logprobs", token_logprobs)


def break_after_pass(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    """As text does that cannot be made."""
    assert fault.victim is not None
    fault.victim.after_pass = lambda stats: fault.meet(fault.victim)


STEPS = {
    "pending": lambda patch, fault: break_method(patch, fault, Sequence, "pending"),
    "blocks": lambda patch, fault: break_method(patch, fault, Sequence, "expected_blocks"),
    "begin": lambda patch, fault: break_method(patch, fault, Scheduler, "_begin"),
    "rows": lambda patch, fault: break_method(patch, fault, Sequence, "rows"),
    "root": lambda patch, fault: break_method(patch, fault, Sequence, "root"),
    "take": lambda patch, fault: break_method(patch, fault, Engine, "_take"),
    "draw": break_sampler,
    "logprobs": break_logprobs,
    "record": break_record,
    "after_pass": break_after_pass,
}
ONCE = ("blocks", "begin")
"""Steps that come before the first pass only."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(CASES["gqa-4"].write(tmp_path_factory.mktemp("model") / "model"), resident=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(plain: Engine) -> list[list[int]]:
    """What each draws by itself; the victim's tokens come last."""
    drawn = []
    for prompt in (*COMPANY, VICTIM):
        generation = plain.add(prompt, GREEDY, TOKENS)
        finish(plain, [generation])
        plain.cancel(generation)
        drawn.append(generation.token_ids)
    return drawn


def run_beside(engine: Engine, alone: list[list[int]], fault: Fault, patch: pytest.MonkeyPatch, step: str) -> None:
    """The victim ends with its error, the others as they would alone, and one that asks the same again, too."""
    params = SamplingParams(temperature=0, seed=0, logprobs=0 if step == "logprobs" else None)
    fault.victim = victim = engine.add(VICTIM, params, TOKENS)
    STEPS[step](patch, fault)
    others = [engine.add(prompt, GREEDY, TOKENS) for prompt in COMPANY]
    finish(engine, [victim, *others])
    assert fault.met
    assert (victim.finish_reason, victim.cache.n_blocks) == ("error", 0)
    assert victim.error is not None
    assert fault.error in (victim.error, victim.error.__cause__)
    patch.undo()
    assert [other.token_ids for other in others] == alone[:-1]
    assert {(other.finish_reason, other.error) for other in others} == {("length", None)}
    again = engine.add(VICTIM, GREEDY, TOKENS)
    finish(engine, [again])
    assert again.token_ids == alone[-1]
    engine.cancel(again)
    assert (engine.scheduler.active, list(engine.scheduler.waiting), engine.busy) == ([], [], False)


@pytest.mark.parametrize("after", quick([2], [0, 2]))
@pytest.mark.parametrize("guesses", quick([True], [False, True]))
@pytest.mark.parametrize("step", STEPS)
def test_wherever_it_comes(plain: Engine, alone: list[list[int]], step: str, guesses: bool, after: int) -> None:
    if (step in ONCE and after) or (step in ("root", "record") and not guesses):
        pytest.skip("does not come to that")
    with limited(plain, blocks=60) as engine, pytest.MonkeyPatch.context() as patch:
        if guesses:
            speculate(engine, [Lookup(), Recycling(VOCAB)], 2)
        run_beside(engine, alone, Fault(ZeroDivisionError("no\nreason"), after), patch, step)


@pytest.mark.parametrize("error", [*ERRORS, *OWN], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["rows", "draw", "after_pass"])
def test_whatever_it_is(
    plain: Engine, alone: list[list[int]], step: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with limited(plain, blocks=60) as engine, pytest.MonkeyPatch.context() as patch:
        fault = Fault(error)
        run_beside(engine, alone, fault, patch, step)
        assert fault.victim is not None
        if isinstance(error, PenstockError):
            assert fault.victim.error is error
            assert not caplog.records
        else:
            assert isinstance(fault.victim.error, InternalError)
            assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [error]


def test_one_that_waits_for_room(plain: Engine, alone: list[list[int]]) -> None:
    """Those behind it in the queue come up."""
    with limited(plain, blocks=8, kept_blocks=0) as engine, pytest.MonkeyPatch.context() as patch:
        first = engine.add(random_tokens(150, VOCAB, seed=5), GREEDY, 3)
        fault = Fault(ZeroDivisionError("no\nreason"))
        fault.victim = engine.add(VICTIM, GREEDY, TOKENS)
        last = engine.add(COMPANY[2], GREEDY, TOKENS)
        assert len(engine.scheduler.waiting) == 2
        break_method(patch, fault, Sequence, "expected_blocks")
        finish(engine, [first, last])
        assert fault.victim.finish_reason == "error"
        assert last.token_ids == alone[2]


def test_all_of_them(plain: Engine) -> None:
    """A pass that has nothing left to compute is none."""
    with limited(plain, blocks=60) as engine, pytest.MonkeyPatch.context() as patch:
        asked = [engine.add(prompt, GREEDY, TOKENS) for prompt in COMPANY]
        patch.setattr(Sequence, "rows", lambda *_: 1 / 0)
        assert engine.step().rows == 0
        assert not engine.busy
        assert {type(generation.error) for generation in asked} == {InternalError}


def test_what_is_told_of_it() -> None:
    told = str(InternalError.of(ERRORS[0]))
    assert told.startswith("A fault of Penstock's own ended this: ZeroDivisionError: no\nPlease report it")
    assert "OverflowError\n" in str(InternalError.of(OverflowError()))
    assert len(str(InternalError.of(ValueError("x" * 10**6)))) < 400


@pytest.mark.parametrize("token", [-1, VOCAB, 10**30, 0.5, "7"])
def test_tokens_that_were_never_drawn(plain: Engine, token: Any) -> None:
    with pytest.raises(PenstockError):
        plain.add([1, 2], GREEDY, TOKENS, drawn=[3, token])
    assert (plain.scheduler.active, list(plain.scheduler.waiting)) == ([], [])


class TestGuesses:
    """They only propose."""

    METHODS = ("begin", "expand", "learn", "forget")

    @pytest.mark.parametrize("free", [True, False])
    @pytest.mark.parametrize("method", METHODS)
    def test_a_drafter_that_raises_is_asked_no_more(
        self,
        plain: Engine,
        alone: list[list[int]],
        method: str,
        free: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        broken = Scripted(lambda *_: [(5, 0.5)], "broken", free)
        setattr(broken, method, lambda *_: 1 / 0)
        with limited(plain, blocks=60) as engine:
            speculator = speculate(engine, [Recycling(VOCAB), broken], 3)
            asked = [engine.add(prompt, GREEDY, TOKENS) for prompt in (*COMPANY, VICTIM)]
            finish(engine, asked)
            for generation in asked:
                engine.cancel(generation)
            assert [drafter.name for drafter in speculator.drafters] == ["recycling"]
        assert [generation.token_ids for generation in asked] == alone
        [record] = caplog.records
        assert re.search(r"Guesses failed, .* those of: broken", record.getMessage())
        assert record.exc_info

    def test_too_few_answers(self, plain: Engine, alone: list[list[int]]) -> None:
        broken = Scripted(lambda *_: [], "broken")
        broken.expand = lambda nodes: []  # type: ignore[method-assign]
        with limited(plain, blocks=60) as engine:
            speculator = speculate(engine, [broken], 3)
            generation = engine.add(VICTIM, GREEDY, TOKENS)
            finish(engine, [generation])
            assert speculator.drafters == []
        assert generation.token_ids == alone[-1]

    @pytest.mark.parametrize("what", ["_grow", "_calibrations", "costs"])
    def test_what_is_nobodys_in_particular(self, plain: Engine, alone: list[list[int]], what: str) -> None:
        with limited(plain, blocks=60) as engine:
            speculator: Speculator = speculate(engine, [Lookup(), Recycling(VOCAB)], 3)
            setattr(speculator, what, None)
            generation = engine.add(VICTIM, GREEDY, TOKENS)
            finish(engine, [generation])
            assert speculator.drafters == []
        assert generation.token_ids == alone[-1]


class TestText:
    """What cannot be made a text ends the sequence that has it."""

    PARAMS = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)

    def test_for_the_one_caller_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with LLM.open("demo", draft="none") as llm:
            [expected] = llm.generate([[5, 6, 7]], self.PARAMS)
            stream = llm.stream([5, 6, 7], self.PARAMS)
            pieces = [next(stream)]
            victim = llm.submit([9, 10], self.PARAMS)
            monkeypatch.setattr(victim, "_new_text", lambda: 1 / 0)
            llm.step()
            assert isinstance(victim.error, InternalError)
            assert isinstance(victim.error.__cause__, ZeroDivisionError)
            pieces += stream
            assert [token for piece in pieces for token in piece.token_ids] == expected.token_ids

    def test_as_it_is_taken_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with LLM.open("demo", draft="none") as llm:
            assert llm.tokenizer is not None
            monkeypatch.setattr(type(llm.tokenizer), "token", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                llm.submit([5, 6, 7], self.PARAMS, drawn=[8])
            assert not llm.busy
