"""The command line: parse, call, show."""

from __future__ import annotations

import sys
import warnings

import typer

from penstock.cli.batch import batch
from penstock.cli.bench import bench
from penstock.cli.demo import demo
from penstock.cli.leaving import leave
from penstock.cli.pack import pack
from penstock.cli.perplexity import perplexity
from penstock.cli.plan import plan
from penstock.cli.pull import pull
from penstock.cli.run import run
from penstock.cli.serve import serve
from penstock.cli.synth import synth
from penstock.cli.tune import tune
from penstock.cli.unpack import unpack
from penstock.cli.verify import verify
from penstock.errors import PenstockError, UsageError

app = typer.Typer(
    name="penstock",
    help="Run large language models at full BF16 precision on machines with little memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, run, batch, pull, pack, tune, unpack, verify, plan, bench, perplexity, synth, serve):
    app.command()(command)


def main() -> None:
    """Run the command line: exits with 2 for wrong use, 130 after Ctrl-C, 1 for every other failure."""
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
