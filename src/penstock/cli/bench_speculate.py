"""`penstock bench --speculate`: what guesses bring, and what they take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from penstock.benchmarks.acceptance import FIRST, NODES, TextResult, TextSettings, run_text
from penstock.benchmarks.acceptance_plot import draw_acceptance
from penstock.benchmarks.plot import check_plot
from penstock.benchmarks.seconds import (
    RandomResult,
    SecondsSettings,
    SimulatedResult,
    parse_chances,
    run_random,
    run_simulated,
)
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled
from penstock.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

RANDOM_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command; None where one was not given."""

    text: Path | None
    simulate: list[str] | None
    random: bool | None
    draft: str | None
    draft_nodes: int | None
    prompts: int | None
    prompt_tokens: int | None
    tokens: int | None
    repeats: int | None
    memory: str | None
    threads: int | None
    kv_dtype: str
    plot: Path | None

    def of_guesses(self) -> dict[str, Any]:
        """Those that only --speculate has, None where one was not given."""
        names = ("text", "simulate", "random", "draft", "draft_nodes", "prompts", "tokens", "repeats")
        return {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}

    def check(self) -> None:
        """Raise UsageError for options that do not go together."""
        given = [bool(self.text), bool(self.simulate), bool(self.random)]
        if sum(given) != 1:
            raise UsageError(
                "--speculate measures guesses on a text, with simulated acceptance, or on random text.",
                "Give one of --text FILE, --simulate 0.70,0.12,0.05 and --random.",
            )
        if self.draft == "none":
            raise UsageError("--draft none leaves nothing to guess with.", "Leave out --speculate, or --draft.")
        for option, value, usable in (
            ("--prompts", self.prompts, self.text),
            ("--plot", self.plot, self.text),
            ("--repeats", self.repeats, self.simulate),
        ):
            if value is not None and not usable:
                other = "--simulate" if option == "--repeats" else "--text"
                raise UsageError(f"{option} is for {other}.", f"Leave it out, or give {other}.")

    def settings(self, *more: str) -> dict[str, Any]:
        """Those of every kind of run, and `more`, as far as they were given."""
        names = ("draft", "prompt_tokens", "tokens", "memory", "threads", "kv_dtype", *more)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def bench_speculate(model: str, asked: Asked, as_json: bool) -> None:
    """Measure and show. Raises UsageError for options that do not go together."""
    asked.check()
    if asked.plot is not None:
        check_plot(asked.plot)
    measure = _measure(model, asked)
    with Console(stderr=True).status("opening") as status:
        result = measure(status.update)
    if isinstance(result, TextResult) and asked.plot is not None:
        draw_acceptance(result, asked.plot)
    if as_json:
        print(json.dumps(result.as_object()))
        return
    console = Console(highlight=False)
    if isinstance(result, TextResult):
        tell(console, text_tables(result))
    elif isinstance(result, SimulatedResult):
        tell(console, simulated_table(result))
    else:
        tell(console, random_table(result))


Result = TextResult | SimulatedResult | RandomResult


def _measure(model: str, asked: Asked) -> Callable[[Callable[[str], None]], Result]:
    """The settings are checked at once."""
    if asked.text is not None:
        nodes = NODES if asked.draft_nodes is None else (asked.draft_nodes,)
        text = TextSettings(text=asked.text, nodes=nodes, **asked.settings("prompts"))
        return lambda tell: run_text(model, text, tell=tell)
    if asked.simulate:
        seconds = SecondsSettings(**asked.settings("draft_nodes", "repeats"))
        chances = [parse_chances(each) for each in asked.simulate]
        return lambda tell: run_simulated(model, seconds, chances, tell=tell)
    random = SecondsSettings(**{"tokens": RANDOM_TOKENS} | asked.settings("draft_nodes"))
    return lambda tell: run_random(model, random, tell=tell)


def text_tables(result: TextResult) -> Group:
    """Tokens a pass by drafter and guesses, at each temperature; then each drafter's first guesses."""
    parts: list[Any] = []
    for temperature in sorted({one.temperature for one in result.acceptance}):
        title = f"{escape(result.model)}, {escape(result.text)}: tokens a pass, temperature {temperature:g}"
        parts += [titled(title, _rates_table(result, temperature)), ""]
    if result.chains:
        parts += ["of a chain: its length; it has as many drafting steps, or rows, as the tree above it", ""]
    if result.first_guesses:
        parts += ["how often the model's choice is within a drafter's first guesses", _first_table(result), ""]
    said = f"{result.prompts} prompts of {result.prompt_tokens} tokens, {result.tokens} more each"
    parts.append(f"{said}; all runs gave the tokens of plain decoding")
    return Group(*parts)


def _rates_table(result: TextResult, temperature: float) -> Table:
    rates: dict[str, dict[int, str]] = {}
    for one in result.acceptance:
        if one.temperature == temperature:
            rates.setdefault(one.drafter, {})[one.nodes] = f"{one.tokens_per_pass:.2f}"
    for chain in result.chains:
        if chain.temperature == temperature:
            said = f"{chain.tokens_per_pass:.2f} ({chain.length})"
            rates.setdefault(f"{chain.drafter}, a chain, as many {chain.same}", {})[chain.nodes] = said
    table = Table()
    table.add_column("guesses")
    nodes = sorted({one.nodes for one in result.acceptance})
    for count in nodes:
        table.add_column(str(count), justify="right")
    for name, row in rates.items():
        shown = f"{name} ({', '.join(result.together)})" if name == "together" else name
        table.add_row(shown, *(row.get(count, "") for count in nodes))
    return table


def _first_table(result: TextResult) -> Table:
    table = Table()
    table.add_column("drafter")
    table.add_column("temperature", justify="right")
    for count in FIRST:
        table.add_column(str(count), justify="right")
    for one in result.first_guesses:
        shares = (f"{one.within[count]:.1%}" for count in FIRST)
        table.add_row(one.drafter, f"{one.temperature:g}", *shares)
    return table


def simulated_table(result: SimulatedResult) -> Group:
    """A row for the plain passes and for each of the simulated acceptances."""
    title = (
        f"{escape(result.model)}, SIMULATED acceptance, the cost of {escape(result.draft or 'its coarse tier')} is paid"
    )
    table = Table()
    for heading in ("chances", "s a token", "tokens a pass", "guesses a pass", "s a pass", "guessing", "computing"):
        table.add_column(heading, justify="left" if heading == "chances" else "right")
    plain = format_seconds(result.plain.median_seconds)
    table.add_row("plain", plain, "1", "0", plain, "", "")
    for simulation in result.simulations:
        told = simulation.total
        table.add_row(
            ", ".join(f"{chance:g}" for chance in simulation.simulated_chances),
            format_seconds(told.seconds_per_token),
            f"{told.tokens_per_pass:.2f}",
            f"{told.nodes_per_pass:.1f}",
            format_seconds(told.seconds_per_pass),
            format_seconds(told.draft_seconds_per_pass),
            format_seconds(told.computing_seconds_per_pass),
        )
    return Group(titled(title, table), *_conditions(result))


def random_table(result: RandomResult) -> Group:
    """Passes with guesses beside plain ones."""
    drafters = (f"{name} (dropped)" if name in result.dropped else name for name in result.drafters)
    title = f"{escape(result.model)}, random text, guesses by {', '.join(drafters)}"
    table = Table()
    for heading in ("", "passes", "s a token", "guesses a pass", "guessing", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    plain, told = result.plain, result.guessed
    table.add_row("plain, median", str(plain.passes), format_seconds(plain.median_seconds), "0", "", "")
    table.add_row(
        "guessed",
        str(told.passes),
        format_seconds(told.seconds_per_token),
        f"{told.nodes_per_pass:.1f}",
        format_seconds(told.draft_seconds_per_pass),
        f"{result.ratio:.3f}",
    )
    return Group(titled(title, table), *_conditions(result))


def _conditions(result: SimulatedResult | RandomResult) -> tuple[str, ...]:
    plain = result.plain
    told = result.guessed if isinstance(result, RandomResult) else result.simulations[-1].total
    return (
        f"streamed a pass: {format_size(plain.streamed_bytes)} plain, {format_size(told.streamed_bytes)} with guesses; "
        f"resident: {format_size(plain.resident_bytes)}, {format_size(told.resident_bytes)}",
        f"memory: {format_size(result.peak_rss_bytes)} of {format_size(result.memory_ceiling_bytes)}; "
        f"{result.threads} threads, {result.isa}; all runs gave the same tokens",
    )
