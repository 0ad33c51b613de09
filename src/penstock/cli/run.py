"""`penstock run`: complete a prompt, or chat on a terminal."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options as opt
from penstock.cli.asked import asked_text, stdin_is_terminal
from penstock.cli.attached import attach, with_files
from penstock.cli.forms import GrammarFile, Regex, Schema, form_of
from penstock.cli.leaving import at_the_end
from penstock.cli.opening import opens_model
from penstock.cli.stats import ALL, check_stats, print_all_stats, print_layers, print_stats, stats_object
from penstock.errors import ChatTemplateError, UsageError
from penstock.options import OpenOptions
from penstock.trace import Trace

if TYPE_CHECKING:
    from penstock.completion import Piece
    from penstock.llm import LLM


@opens_model()
def run(
    model: opt.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text; `-` reads it from standard input. What is piped to a prompt follows it, after a blank line."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text as it stands, without the template.")] = False,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Fill in what belongs between the prompt and this text, by a model that was trained to fill in a "
            "middle; without the template."
        ),
    ] = None,
    stdin: Annotated[
        bool | None,
        typer.Option(
            "--stdin/--no-stdin",
            help="Wait for what is piped to a prompt, however long it takes; or leave it alone. (default: where "
            "standard input is a pipe or a file, and a pipe is not silent for 5 seconds)",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="A text file (UTF-8) to put behind the prompt, by its name; may be given several times."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="What to tell the model before the conversation: how to answer, say.")
    ] = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    frequency_penalty: opt.FrequencyPenalty = 0.0,
    presence_penalty: opt.PresencePenalty = 0.0,
    schema: Schema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    options: OpenOptions = OpenOptions(),  # noqa: B008
    stats: Annotated[
        str | None,
        typer.Option("--stats", help="Show where the time went: in three lines, or all of it.", metavar="[=all]"),
    ] = None,
    stats_layers: Annotated[bool, typer.Option("--stats-layers", help="Show all of it, layer by layer.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write every read, wait and computation to this file, for ui.perfetto.dev.")
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(help="Keep the conversation in this file, after every pass; go on with what it holds."),
    ] = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep no history of what is typed in chats.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="On a terminal, leave Markdown as it comes."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The plain text, no status line below it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text; without a prompt on a terminal, chat."""
    # Here, since help and completion in the shell come without.
    from penstock.cli.chat import Chat
    from penstock.cli.chat_commands import COMMANDS
    from penstock.cli.chat_loop import run_chat
    from penstock.cli.offer_pull import offer_to_pull
    from penstock.cli.session_answer import session_answer
    from penstock.cli.show import choose_display, show
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams
    from penstock.sessions.session import Session

    check_stats(stats)
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        **form_of(schema, regex, grammar),
        seed=seed,
        max_tokens=max_tokens,
        stop=stop or (),
    )
    if suffix is not None and (prompt is None or session is not None or system is not None or file):
        raise UsageError(
            "--suffix needs a prompt, and goes with no --session, --system or --file.",
            "Give what stands before the gap as the prompt, or `-` to read it from standard input.",
        )
    raw = raw or suffix is not None
    goes_on = session is not None and (raw or as_json)
    chats = prompt is None and stdin is None and stdin_is_terminal() and not goes_on
    if chats and (raw or as_json):
        raise UsageError(
            f"{'--raw' if raw else '--json'} needs a prompt.",
            "Give the text to complete, or `-` to read it from standard input.",
        )
    if raw and (system is not None or file):
        raise UsageError(
            f"{'--file' if file else '--system'} needs the chat template, which --raw leaves out.",
            "Leave --raw out, or put all that is to be completed into the prompt.",
        )
    display, adapter = choose_display(as_json, quiet, plain or params.form is not None, raw), options.sole_adapter

    def report(pieces: list[Piece]) -> None:
        if not pieces or not pieces[-1].stats.log:
            return
        if stats_layers or stats == ALL:
            print_all_stats(llm, pieces[-1].stats)
        elif stats:
            print_stats(llm, pieces[-1].stats)
        if stats_layers:
            print_layers(pieces[-1].stats)

    if chats:
        from penstock.cli.chat_input import prompt_session  # before the model, which takes what memory is left

        typed = prompt_session(list(COMMANDS), keep_history=not no_history)

    with ExitStack() as last, ExitStack() as stack:
        listener = stack.enter_context(Trace(trace, f"penstock run {model}")) if trace else None
        offer_to_pull(model)
        llm = stack.enter_context(LLM.open_with(model, options))
        if listener:
            llm.events.listeners.append(listener)
        if chats:
            kept = stack.enter_context(Session(llm, session, adapter))
            kept.system = kept.system if system is None else system
            chat = Chat(llm, kept, params, display, report)
            chat.files += [attach(path, llm.check_length) for path in file or ()]
            run_chat(chat, typed.prompt)
            return
        if (system is not None or file) and not llm.has_chat_template:
            raise ChatTemplateError(
                f"This model has no chat template, so it takes no {'--file' if file else '--system'}.",
                "Put all that is to be completed into the prompt.",
            )
        text = asked_text(prompt, stdin, llm.check_length, optional=session is not None)
        text = with_files(text, [attach(path, llm.check_length) for path in file or ()])
        if not llm.has_chat_template:
            raw, display = True, "words" if display == "markdown" else display
        if session is not None:
            kept = last.enter_context(Session(llm, session, adapter))
            coming = session_answer(kept, session, text or None, params, raw, system)
            rows = kept.rows_to_come if kept.unfinished else 0  # no pass is to come
            pieces, interrupted = show(llm, coming, rows, display)
        elif suffix is not None:
            rows = len(llm.infilling_prompt(text, suffix))
            pieces, interrupted = show(llm, llm.fill_in_stream(text, suffix, params, adapter=adapter), rows, display)
        else:
            messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
            tokens = llm.text_prompt(text) if raw else llm.chat_prompt(messages)
            coming = llm.stream(tokens, params, adapter=adapter)
            pieces, interrupted = show(llm, coming, len(tokens), display)
        if as_json:
            print(json.dumps(as_object(llm, pieces, stats_layers)), flush=True)
        report(pieces)
        if interrupted:
            raise KeyboardInterrupt
        stack.close()
        if session is not None:  # until it is told, the same command tells the same answer
            at_the_end(kept.told)
            at_the_end(last.pop_all().close)


def as_object(llm: LLM, pieces: list[Piece], layers: bool = False) -> dict[str, Any]:
    """The output as an object for JSON; `finish_reason` is null where Ctrl-C ended it."""
    return {
        "text": "".join(piece.text for piece in pieces),
        "token_ids": [token for piece in pieces for token in piece.token_ids],
        "finish_reason": pieces[-1].finish_reason if pieces else None,
        "stats": stats_object(llm, pieces[-1].stats, layers) if pieces else None,
    }
