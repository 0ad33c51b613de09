"""`penstock bench --speculate`: what guesses bring, and what they take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

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
    say_chances,
)
from penstock.cli.tables import right
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled
from penstock.errors import UsageError

RANDOM_TOKENS = 128
OF_GUESSES = ("text", "simulate", "random", "draft", "draft_nodes", "prompts", "tokens", "repeats")
"""Options that only --speculate has."""

Given = Mapping[str, Any]
"""Options that were given, by the names of their parameters."""


def picked(given: Given, *names: str) -> dict[str, Any]:
    """Those of these names."""
    return {name: given[name] for name in names if name in given}


def refuse(given: Given, names: Iterable[str], remedy: str) -> None:
    """Raise UsageError where one of these was given."""
    for name in picked(given, *names):
        raise UsageError(f"{_option(name)} has no meaning here.", remedy)


def bench_speculate(model: str, given: Given, as_json: bool) -> None:
    """Measure and show. Raises UsageError for options that do not go together."""
    measure, tables = _measurement(model, given)
    plot = given.get("plot")
    if plot is not None:
        check_plot(plot)
    with Console(stderr=True).status("opening") as status:
        result = measure(tell=status.update)
    if plot is not None:
        draw_acceptance(result, plot)
    if as_json:
        print(json.dumps(result.as_object()))
    else:
        tell(Console(highlight=False), tables(result))


def _measurement(model: str, given: Given) -> tuple[Callable[..., Any], Callable[[Any], Group]]:
    """What measures, with its settings checked, and what makes tables of the result."""
    kind = _kind(given)
    common = picked(given, "draft", "prompt_tokens", "tokens", "memory", "threads", "kv_dtype")
    if kind == "text":
        nodes = (given["draft_nodes"],) if "draft_nodes" in given else NODES
        text = TextSettings(text=given["text"], nodes=nodes, **common, **picked(given, "prompts"))
        return partial(run_text, model, text), text_tables
    common |= picked(given, "draft_nodes", "repeats")
    if kind == "simulate":
        chances = [parse_chances(each) for each in given["simulate"]]
        return partial(run_simulated, model, SecondsSettings(**common), chances), simulated_table
    return partial(run_random, model, SecondsSettings(**{"tokens": RANDOM_TOKENS} | common)), random_table


def _kind(given: Given) -> str:
    """The one of "text", "simulate" and "random" that was given. Raises UsageError for what does not go with it."""
    kinds = list(picked(given, "text", "simulate", "random"))
    if len(kinds) != 1:
        raise UsageError(
            "--speculate measures guesses on a text, with simulated acceptance, or on random text.",
            "Give one of --text FILE, --simulate 0.70,0.12,0.05 and --random.",
        )
    if given.get("draft") == "none":
        raise UsageError("--draft none leaves nothing to guess with.", "Leave out --speculate, or --draft.")
    for name, kind in (("prompts", "text"), ("plot", "text"), ("repeats", "simulate")):
        if name in given and kind not in kinds:
            raise UsageError(f"{_option(name)} is for --{kind}.", f"Leave it out, or give --{kind}.")
    return kinds[0]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def text_tables(result: TextResult) -> Group:
    """Tokens a pass by drafter and guesses, at each temperature; then each drafter's first guesses."""
    parts: list[Any] = []
    for temperature in sorted({one.temperature for one in result.acceptance}):
        title = f"{escape(result.model)}, {escape(result.text)}: tokens a pass, temperature {temperature:g}"
        parts += [titled(title, _rates_table(result, temperature)), ""]
    if result.chains:
        parts += ["in brackets: the length of a chain with as many drafting steps, or rows, as the tree above it", ""]
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
    nodes = sorted({one.nodes for one in result.acceptance})
    table = Table("guesses", *(right(str(count)) for count in nodes))
    for name, row in rates.items():
        shown = f"{name} ({', '.join(result.together)})" if name == "together" else name
        table.add_row(shown, *(row.get(count, "") for count in nodes))
    return table


def _first_table(result: TextResult) -> Table:
    table = Table("drafter", right("temperature"), *(right(str(count)) for count in FIRST))
    for one in result.first_guesses:
        table.add_row(one.drafter, f"{one.temperature:g}", *(f"{one.within[count]:.1%}" for count in FIRST))
    return table


def simulated_table(result: SimulatedResult) -> Group:
    """A row for the plain passes and for each of the simulated acceptances."""
    title = (
        f"{escape(result.model)}, SIMULATED acceptance, the cost of {escape(result.draft or 'its coarse tier')} is paid"
    )
    headings = ("s a token", "tokens a pass", "guesses a pass", "s a pass", "guessing", "computing")
    table = Table("chances", *map(right, headings))
    plain = format_seconds(result.plain.median_seconds)
    table.add_row("plain", plain, "1", "0", plain, "", "")
    for simulation in result.simulations:
        told = simulation.total
        table.add_row(
            say_chances(simulation.simulated_chances[:1]).replace(",", ", ")
            + "; ..." * (len(simulation.simulated_chances) > 1),
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
    table = Table("", *map(right, ("passes", "s a token", "guesses a pass", "guessing", "ratio")))
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
