"""`penstock serve`: a model for other programs, and for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as opt
from penstock.errors import UsageError
from penstock.llm import LLM
from penstock.memory.budget import parse_bytes
from penstock.system import machine

SERVER_PACKAGES = 'Install those of the extra "serve": pip install fastapi uvicorn prometheus-client.'


def serve(
    model: opt.Model,
    host: Annotated[str, typer.Option(help="Address to listen at. Others than loopback ones want --api-key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="What clients must send as their key.", envvar="PENSTOCK_API_KEY")
    ] = None,
    queue: Annotated[int, typer.Option(help="Most requests that wait for their turn.", min=1)] = 100,
    max_body: Annotated[
        str | None, typer.Option(help="Longest request, like 1MiB. (default: 32 KiB to 4 MiB, by the ceiling)")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer, for requests that name no limit.", min=1)
    ] = 1024,
    memory: opt.Memory = None,
    context: opt.Context = None,
    threads: opt.Threads = None,
    kv_dtype: opt.KvDtype = "bf16",
    draft: opt.Draft = None,
    draft_nodes: opt.DraftNodes = None,
) -> None:
    """Serve a model over OpenAI's HTTP protocol, with a chat page."""
    try:
        # Before the model is opened, which shares out what memory is left.
        from penstock.server.guard import is_loopback
        from penstock.server.run import listen, run, url
        from penstock.server.settings import Settings, default_body, queue_tokens
    except ModuleNotFoundError as error:
        raise UsageError(f"The server needs the package {error.name}.", SERVER_PACKAGES) from error
    if api_key == "":
        raise UsageError("The API key is empty.", "Give one, or leave --api-key out.")
    ceiling = machine.available_bytes() if memory is None else parse_bytes(memory)
    most_bytes = default_body(ceiling) if max_body is None else parse_bytes(max_body)
    settings = Settings(
        model=Path(model).resolve().name if Path(model).is_dir() else model,
        max_body=most_bytes,
        queue_tokens=queue_tokens(ceiling, queue, most_bytes),
        queue=queue,
        max_tokens=max_tokens,
        api_key=api_key,
        loopback=is_loopback(host),
    )
    with (
        listen(host, port) as listening,
        LLM.open(
            model,
            memory=memory,
            threads=threads,
            context=context,
            draft=draft,
            draft_nodes=draft_nodes,
            kv_dtype=kv_dtype,
            reserve=settings.reserve,
            longest_text=settings.max_body,
        ) as llm,
    ):
        if not settings.loopback and api_key is None:
            typer.echo("warning: Everyone who can reach this address may use the model; see --api-key.", err=True)
        run(llm, settings, listening, lambda: typer.echo(f"{settings.model} is served at {url(listening)}"))
