"""Small functions for users, in one place; the library itself imports them from where they are defined."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sumprod._numeric import torch_isinf, torch_isnan, warn_if_inf, warn_if_nan
from sumprod._random import get_rng_state, preserve_rng_state, set_rng_seed, set_rng_state
from sumprod.handlers.util import site_is_subsample
from sumprod.infer._checks import (
    check_if_enumerated,
    check_model_guide_match,
    check_site_shape,
    check_traces_match,
)
from sumprod.infer._enum_requirements import check_traceenum_requirements

if TYPE_CHECKING:
    from sumprod.handlers.trace_struct import Trace

__all__ = [
    "ExperimentalWarning",
    "check_if_enumerated",
    "check_model_guide_match",
    "check_site_shape",
    "check_traceenum_requirements",
    "check_traces_match",
    "deep_getattr",
    "get_rng_state",
    "ignore_experimental_warning",
    "preserve_rng_state",
    "save_visualization",
    "set_rng_seed",
    "set_rng_state",
    "site_is_subsample",
    "torch_float",
    "torch_isinf",
    "torch_isnan",
    "warn_if_inf",
    "warn_if_nan",
]


class ExperimentalWarning(UserWarning):
    """Says that something may still change."""


@contextmanager
def ignore_experimental_warning() -> Iterator[None]:
    """Silences `ExperimentalWarning` inside a `with` block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=ExperimentalWarning)
        yield


def torch_float(x: torch.Tensor | float) -> torch.Tensor | float:
    """`x` as float32 tensor, or as Python float when it is a number."""
    return x.float() if isinstance(x, torch.Tensor) else float(x)


def deep_getattr(obj: Any, name: str) -> Any:
    """The attribute at the end of a dotted path.

    >>> deep_getattr(torch.nn.Linear(2, 1), "weight.shape")
    torch.Size([1, 2])
    """
    return functools.reduce(getattr, name.split("."), obj)


def save_visualization(trace: Trace, graph_output: str | os.PathLike[str]) -> None:
    """Draws the sample sites of a trace, observed ones filled, and the edges of a dense one.

    A path that ends in `.dot` or `.gv` gets the graph as text. Any other path is drawn by Graphviz's program
    `dot` as PDF, at that path with `.pdf` appended. Raises RuntimeError when the program is missing.
    """
    sites = [
        name for name, node in trace.nodes.items() if node["type"] == "sample" and not site_is_subsample(node)
    ]
    lines = ["digraph {"]
    for name in sites:
        color = "grey" if trace.nodes[name]["is_observed"] else "white"
        lines.append(f"  {_quote(name)} [shape=circle, style=filled, fillcolor={color}]")
    for source, target in trace.edges:
        if source in sites and target in sites:
            lines.append(f"  {_quote(source)} -> {_quote(target)}")
    text = "\n".join([*lines, "}", ""])
    path = Path(graph_output)
    if path.suffix in (".dot", ".gv"):
        path.write_text(text, encoding="utf-8")
        return
    program = shutil.which("dot")
    if program is None:
        raise RuntimeError(
            f"Graphviz's program dot is not installed, so {path}.pdf cannot be drawn; give a path that ends "
            "in .dot to get the graph as text"
        )
    subprocess.run([program, "-Tpdf", "-o", f"{path}.pdf"], input=text.encode(), check=True)


def _quote(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
