"""How often guesses are right on real text, and how many tokens that makes a pass bring.

Prompts are cut from a text, and each is completed plainly first. Every further run has to bring the same tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.benchmarks.figures import check_counts
from penstock.benchmarks.timed_decoding import Decoding, decode, guessing, own_drafters, rates, require_equal
from penstock.errors import TokenizerError, UsageError
from penstock.llm import LLM
from penstock.memory.text_room import BYTES_TO_TOKENIZE
from penstock.options import OpenOptions
from penstock.sampling import SamplingParams
from penstock.speculate.asking import Asking, FirstOnly, Overheard
from penstock.speculate.recycling import Recycling

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from penstock.speculate.drafter import Drafter

    Tell = Callable[[str], None]

NODES = (1, 4, 16, 64, 256)
TEMPERATURES = (0.0, 1.0)
FIRST = (1, 2, 4, 8)
"""How many of a drafter's guesses at a position are looked at."""
TOGETHER, RECYCLING = "together", "recycling"
LONGEST_CHAIN = 128
"""Longer ones would bring next to nothing more."""
OVERSHOOT = 300
"""Tokens that the last pass of a run may bring beyond those that were asked for."""
PAGE_BREAK = "\n\f\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings(OpenOptions):
    """What to run, and how to open the model. Raises UsageError for counts below 1."""

    text: Path
    """UTF-8; documents are separated by a line with a form feed."""
    nodes: tuple[int, ...] = NODES
    prompts: int = 20
    prompt_tokens: int = 200
    tokens: int = 64
    """To bring, after the first of each prompt."""

    def __post_init__(self) -> None:
        OpenOptions.__post_init__(self)
        check_counts(self, "prompts", "prompt_tokens", "tokens")
        if min(self.nodes) < 1:
            raise UsageError(f"--draft-nodes {min(self.nodes)}: at least 1 is needed.", "Raise --draft-nodes.")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What one drafter, or those of the model together, made of all prompts with so many guesses a pass."""

    drafter: str
    temperature: float
    nodes: int
    tokens: int
    passes: int
    tokens_per_pass: float
    """Mean over the passes."""
    nodes_per_pass: float
    right_by_depth: list[float]
    """Of the passes that had guesses so many tokens on, the share of which one was right."""
    asked_per_pass: float
    """Nodes about which drafters were asked that take time."""
    steps_per_pass: float
    """Calls of these drafters, each about one node or many."""
    draft_seconds_per_pass: float
    seconds_per_token: float


@dataclass(frozen=True, slots=True)
class Chain:
    """A tree's run, and one with a chain of a drafter's first guesses that cost as much drafting."""

    drafter: str
    temperature: float
    nodes: int
    """Of the tree."""
    tree_tokens_per_pass: float
    same: str
    """What both had the same number of. "steps", calls of the drafter, are what to compare where a call about many
    nodes takes as long as one about a single node, as it does while memory limits it; "rows", where each node takes
    its time."""
    length: int
    """Of the chain, at most LONGEST_CHAIN."""
    tokens_per_pass: float


@dataclass(frozen=True, slots=True)
class FirstGuesses:
    """How often the model's choice was among a drafter's first guesses, asked at every position of the texts."""

    drafter: str
    temperature: float
    positions: int
    within: dict[int, float]
    """Share of the positions, by the number of guesses."""


@dataclass(frozen=True, slots=True)
class TextResult:
    """Of a text; `identical`: every run brought the tokens of plain decoding, or there would be no result."""

    model: str
    draft: str | None
    text: str
    prompts: int
    prompt_tokens: int
    tokens: int
    acceptance: list[Acceptance]
    chains: list[Chain]
    first_guesses: list[FirstGuesses]
    together: list[str]
    """The drafters that the model uses by itself."""
    identical: bool = True

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"measures": "acceptance on a text"} | asdict(self)


def run_text(model: str | os.PathLike[str], settings: TextSettings, *, tell: Tell = lambda doing: None) -> TextResult:
    """Open MODEL and measure its drafters on a text, at temperatures 0 and 1.

    Raises as LLM.open does, UsageError for a text that is too short, TokenizerError where the model has no tokenizer,
    and PenstockError where guesses changed a token.
    """
    tell("opening")
    with LLM.open_with(model, settings) as llm:
        text = read_text(settings.text, lambda nbytes: llm.memory.check_tokenizing(BYTES_TO_TOKENIZE * nbytes))
        result = TextResult(
            model=str(model),
            draft=settings.draft,
            text=settings.text.name,
            prompts=settings.prompts,
            prompt_tokens=settings.prompt_tokens,
            tokens=settings.tokens,
            acceptance=[],
            chains=[],
            first_guesses=[],
            together=[drafter.name for drafter in own_drafters(llm)],
        )
        prompts = cut_prompts(llm, text, settings.prompts, settings.prompt_tokens)
        for temperature in TEMPERATURES:
            _Runs(llm, prompts, temperature, settings, result, tell).measure()
        return result


def read_text(path: Path, check_bytes: Callable[[int], object] = lambda nbytes: None) -> str:
    """The text of a UTF-8 file, or of a pipe. `check_bytes` is told how many bytes there are at least, and may raise.

    Raises UsageError for a file that cannot be read.
    """
    parts, nbytes = [], 0
    try:
        check_bytes(path.stat().st_size)
        with path.open(encoding="utf-8", errors="replace") as file:
            while part := file.read(1 << 16):
                parts.append(part)
                nbytes += len(part)
                check_bytes(nbytes)
        return "".join(parts)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Let --text name a file.") from error


def cut_prompts(llm: LLM, text: str, count: int, length: int) -> list[list[int]]:
    """`count` pieces of `length` tokens from all over a text's documents, none across two of them; always the same.

    Where the tokenizer begins texts with a token of its own, each piece has that in front. Raises UsageError where
    no document is so long, TokenizerError.
    """
    if llm.tokenizer is None:
        raise TokenizerError("This checkpoint has no tokenizer, so it cannot take text.", "Measure with --random.")
    tokenizer, first = llm.tokenizer, llm.encode("")[:1]
    length -= len(first)
    documents = [tokenizer.encode(part, add_special_tokens=False) for part in text.split(PAGE_BREAK)]
    starts = [(document, begin) for document in documents for begin in range(len(document) - length + 1)]
    if not starts or length < 1:
        longest = max(map(len, documents))
        raise UsageError(
            f"The longest document of the text has {longest} tokens, and a prompt {length + len(first)}.",
            "Lower --prompt-tokens, or give a longer text.",
        )
    chosen = (starts[(2 * i + 1) * len(starts) // (2 * count)] for i in range(count))
    return [first + document[begin : begin + length] for document, begin in chosen]


@dataclass(slots=True)
class _Runs:
    """All runs at one temperature, which add to a result."""

    llm: LLM
    prompts: Sequence[list[int]]
    temperature: float
    settings: TextSettings
    result: TextResult
    tell: Tell
    plain: list[Decoding] = field(default_factory=list)

    def measure(self) -> None:
        """Each drafter with each number of guesses, all together likewise, and the first guesses of each."""
        self.plain = self._decode("plain decoding", [], 0)
        own = list(own_drafters(self.llm))
        others = [] if RECYCLING in [drafter.name for drafter in own] else [self._recycling()]
        for drafter in (*own, *others):
            for nodes in self.settings.nodes:
                tree = self._grow(drafter.name, [drafter], nodes)
                if not drafter.free:
                    self._chain(drafter, tree)
        for nodes in self.settings.nodes:
            self._grow(TOGETHER, own, nodes)
        for drafter in own:
            if not drafter.free:
                self._overhear(drafter)

    def _recycling(self) -> Drafter:
        """One that has learned nothing: what it knows outlives a text."""
        return Recycling(self.llm.config.vocab_size)

    def _grow(self, name: str, drafters: Sequence[Drafter], nodes: int) -> Acceptance:
        asking = [Asking(self._recycling() if drafter.name == RECYCLING else drafter) for drafter in drafters]
        tree = self._accepted(name, f"{nodes} guesses", asking, nodes)
        self.result.acceptance.append(tree)
        return tree

    def _chain(self, drafter: Drafter, tree: Acceptance) -> None:
        for same, cost in (("steps", tree.steps_per_pass), ("rows", tree.asked_per_pass)):
            length = min(max(1, round(cost)), LONGEST_CHAIN)
            chain = self._accepted(drafter.name, f"a chain of {length}", [FirstOnly(drafter)], length)
            tokens_per_pass = tree.tokens_per_pass, same, length, chain.tokens_per_pass
            self.result.chains.append(Chain(drafter.name, self.temperature, tree.nodes, *tokens_per_pass))

    def _accepted(self, name: str, doing: str, drafters: Sequence[Asking], nodes: int) -> Acceptance:
        """Of all prompts with at most `nodes` guesses a pass."""
        runs = self._decode(f"{name}, {doing}", drafters, nodes)
        reached, right = Counter[int](), Counter[int]()
        for run in runs:
            reached += run.guesses.reached
            right += run.guesses.right
        told, paid = rates(runs), [drafter for drafter in drafters if not drafter.free]
        return Acceptance(
            drafter=name,
            temperature=self.temperature,
            nodes=nodes,
            right_by_depth=[right[depth] / count for depth, count in sorted(reached.items())],
            asked_per_pass=sum(drafter.nodes for drafter in paid) / told["passes"],
            steps_per_pass=sum(drafter.steps for drafter in paid) / told["passes"],
            **told,
        )

    def _overhear(self, drafter: Drafter) -> None:
        within, positions = Counter[int](), 0
        for index, (prompt, plain) in enumerate(zip(self.prompts, self.plain, strict=True)):
            overheard = Overheard(drafter)
            with guessing(self.llm, [overheard], 1):
                self._one(index, f"{drafter.name}, its first guesses")
            positions += len(overheard.guesses)
            for position, guesses in overheard.guesses.items():
                tokens = [guess.token for guess in guesses]
                within.update(count for count in FIRST if plain.token_ids[position - len(prompt)] in tokens[:count])
        shares = {count: within[count] / max(1, positions) for count in FIRST}
        self.result.first_guesses.append(FirstGuesses(drafter.name, self.temperature, positions, shares))

    def _decode(self, doing: str, drafters: Sequence[Drafter], nodes: int) -> list[Decoding]:
        """Complete all prompts; what was learned about guesses is kept from one to the next."""
        with guessing(self.llm, drafters, nodes):
            return [self._one(index, doing) for index in range(len(self.prompts))]

    def _one(self, index: int, doing: str) -> Decoding:
        self.tell(f"temperature {self.temperature:g}: {doing}; prompt {index + 1} of {len(self.prompts)}")
        tokens = self.settings.tokens
        most = 1 + tokens + (OVERSHOOT if self.plain else 0)
        params = SamplingParams(temperature=self.temperature, seed=index, max_tokens=most, ignore_eos=True)
        run = decode(self.llm, self.prompts[index], params, tokens)
        if self.plain:
            require_equal(self.plain[index].token_ids, run.token_ids, f"Prompt {index}, {doing}")
        return run
