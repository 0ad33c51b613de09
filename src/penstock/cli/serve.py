"""`penstock serve`: models for other programs, and for a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.checkpoints.store import store_root
from penstock.cli import options as opt
from penstock.cli.opening import opens_model
from penstock.cli.running import listens_at
from penstock.errors import UsageError
from penstock.options import OpenOptions
from penstock.strict_json import shown
from penstock.system import machine
from penstock.system.sizes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER_PACKAGES = (
    'Install those of the extra "serve": pip install fastapi uvicorn prometheus-client markdown-it-py pygments.'
)
NO_CHATS = "none"


@opens_model()
def serve(
    models: opt.Models,
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
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages from there, like https://app.example, may use the server; several times for several."),
    ] = None,
    chats: Annotated[
        str | None,
        typer.Option(
            help="Folder of the chat page's conversations; `none` keeps them until the server ends. (default: chats in "
            "Penstock's store)"
        ),
    ] = None,
    options: OpenOptions = OpenOptions(),  # noqa: B008
) -> None:
    """Serve models over OpenAI's HTTP protocol, with a chat page. Of several, one at a time is open: a request for
    another one waits until those before it are done."""
    try:
        # Before the model is opened, which shares out what memory is left.
        from penstock.adapters.named import check_names
        from penstock.server.guard import check_origin, is_loopback
        from penstock.server.run import listen, run, url
        from penstock.server.settings import Settings, default_body, queue_tokens
        from penstock.server.shelf import Shelf
    except ModuleNotFoundError as error:
        raise UsageError(f"The server needs the package {error.name}.", SERVER_PACKAGES) from error
    if api_key == "":
        raise UsageError("The API key is empty.", "Give one, or leave --api-key out.")
    ceiling = machine.available_bytes() if options.ceiling is None else options.ceiling
    most_bytes = default_body(ceiling) if max_body is None else parse_bytes(max_body)
    named = _by_name(models)
    settings = Settings(
        max_body=most_bytes,
        queue_tokens=queue_tokens(ceiling, queue, most_bytes),
        queue=queue,
        max_tokens=max_tokens,
        api_key=api_key,
        allowed_origins=tuple(map(check_origin, allow_origin or ())),
        chats=_chats_folder(chats),
        loopback=is_loopback(host),
    )
    check_names(options.adapters, next(iter(named)))
    options = replace(options, reserve=settings.reserve, longest_text=settings.max_body)
    with listen(host, port) as listening, Shelf.read(named, options) as shelf:
        shelf.open_first()
        if not settings.loopback and api_key is None:
            typer.echo(
                "warning: Everyone who can reach this address may use the model and read its chats; see --api-key.",
                err=True,
            )

        def ready() -> None:
            listens_at(listening.getsockname()[1])
            typer.echo(f"{_listed(shelf.names)} served at {url(listening)}")

        run(shelf, settings, listening, ready)


def _by_name(models: Sequence[str]) -> dict[str, str]:
    """Models by the names that requests have for them. Raises UsageError where two have one name."""
    named: dict[str, str] = {}
    for model in models:
        name = Path(model).resolve().name if Path(model).is_dir() else model
        if name in named:
            raise UsageError(
                f"Two models are called {shown(name)}: {named[name]} and {model}.",
                "Requests choose by name: serve one of them from a directory of another name.",
            )
        named[name] = model
    return named


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def _chats_folder(chats: str | None) -> Path | None:
    """Where conversations are kept. One that was named is made at once, so that one learns whether it can be."""
    if chats is None:
        return store_root() / "chats"
    if chats == NO_CHATS:
        return None
    if not chats:
        raise UsageError("--chats names no folder.", "Name one, or none.")
    folder = Path(chats).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot keep conversations in {folder}: {error.strerror}.", "Name another --chats.") from None
    return folder
