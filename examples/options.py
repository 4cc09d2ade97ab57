"""Readers of command lines that the programs share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers for argparse."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return whole_number


def picture(text: str) -> Path:
    """A reader of names of picture files that can be written."""
    path = Path(text)
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of .{', .'.join(formats)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path
