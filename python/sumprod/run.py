"""Runs an unmodified Pyro program on sumprod: `python -m sumprod.run [--pyro-version X] script.py args...`"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from sumprod.compat import PYRO_VERSION, install_as_pyro

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sumprod.run",
        description="Run a Pyro program on sumprod: inside it, `import pyro` finds sumprod.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pyro-version",
        default=PYRO_VERSION,
        metavar="X",
        help="what pyro.__version__ says to the program (default: %(default)s)",
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module instead of a script")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the script, and what it gets as arguments"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the script or module that the command line names; its exceptions and exit code are ours."""
    parser = _parser()
    options = parser.parse_args(argv)
    arguments: list[str] = options.arguments
    if options.module is None:
        if not arguments:
            parser.error("a script is missing")
        if not os.path.exists(arguments[0]):
            parser.error(f"there is no file {arguments[0]!r}")
    install_as_pyro(options.pyro_version)
    if options.module is not None:
        sys.argv = [options.module, *arguments]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        # As python does: the script's folder comes first.
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
