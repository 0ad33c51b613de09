"""The command line within this process, which is quicker than one of its own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from penstock import cli


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What `penstock` with these arguments says and ends with; any error that it leaves uncaught is raised."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        patch.setattr(sys, "stdin", StringIO())
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        patch.setattr("penstock.cli.leaving._acts", [])  # which would end the process
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return subprocess.CompletedProcess(
        [*map(str, arguments)], int(ended.value.code or 0), out.getvalue(), err.getvalue()
    )
