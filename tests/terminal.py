"""The command line in this process: `main` as a shell would call it, its output and exit code."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

from workbench.cli import main


class Done(NamedTuple):
    """What `subprocess.run` says of a program that ended."""

    returncode: int
    stdout: str
    stderr: str


def workbench(*arguments: object) -> Done:
    """`workbench` with these arguments; what is imported once is imported for all of them."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["workbench", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Done(code, out.getvalue(), err.getvalue())
