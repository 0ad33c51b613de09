"""The command line: parse, call, show."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from penstock import __version__
from penstock.cli.batch import batch
from penstock.cli.bench import bench
from penstock.cli.cluster import app as cluster
from penstock.cli.config_file import config_path, read_defaults
from penstock.cli.demo import demo
from penstock.cli.leaving import leave
from penstock.cli.list_models import list_models
from penstock.cli.pack import pack
from penstock.cli.perplexity import perplexity
from penstock.cli.plan import plan
from penstock.cli.ps import ps
from penstock.cli.pull import pull
from penstock.cli.rm import rm
from penstock.cli.run import run
from penstock.cli.running import registered
from penstock.cli.serve import serve
from penstock.cli.show_model import show_model
from penstock.cli.stats import StatsCommand
from penstock.cli.synth import synth
from penstock.cli.tune import tune
from penstock.cli.unpack import unpack
from penstock.cli.verify import verify
from penstock.errors import PenstockError, UsageError
from penstock.system.streams import speak_utf8

app = typer.Typer(
    name="penstock",
    help="Run large language models at full BF16 precision on machines with little memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command(cls=StatsCommand)(registered(run))
for command in (batch, pull):
    app.command()(registered(command))
app.command("list")(list_models)
app.command("show")(show_model)
app.command()(rm)
app.command()(ps)
for command in (pack, tune, unpack, verify):
    app.command()(registered(command))
app.command()(plan)
app.command()(registered(bench))
app.command()(registered(perplexity))
app.command()(synth)
app.command()(registered(serve))
app.add_typer(cluster, name="cluster")


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    if (path := config_path()) is not None:
        commands = {
            info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback
        }
        context.default_map = read_defaults(path, commands)


def main() -> None:
    """Run the command line: exits with 2 for wrong use, 130 after Ctrl-C, 1 for every other failure."""
    if sys.platform == "win32":
        speak_utf8(sys.stdin, sys.stdout, sys.stderr)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        try:
            app(standalone_mode=True)
        except SystemExit as ended:
            if not ended.code:
                leave()
            raise
    except PenstockError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
