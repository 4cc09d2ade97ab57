"""The facade `sumprod.util`, and what is defined there."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import _numeric, _random, util


def test_names() -> None:
    for name in util.__all__:
        assert hasattr(util, name)
    assert util.set_rng_seed is _random.set_rng_seed is sumprod.set_rng_seed
    assert util.warn_if_nan is _numeric.warn_if_nan


def test_torch_float() -> None:
    assert util.torch_float(torch.tensor(3)).dtype == torch.float32
    assert isinstance(util.torch_float(3), float)


def test_deep_getattr() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    assert util.deep_getattr(module, "0.weight.shape") == (3, 2)
    with pytest.raises(AttributeError):
        util.deep_getattr(module, "0.nothing")


def test_experimental_warnings() -> None:
    with pytest.warns(util.ExperimentalWarning):
        warnings.warn("new", util.ExperimentalWarning, stacklevel=1)
    with util.ignore_experimental_warning():
        warnings.warn("new", util.ExperimentalWarning, stacklevel=1)
    with util.ignore_experimental_warning(), pytest.warns(UserWarning, match="other"):
        warnings.warn("other", UserWarning, stacklevel=1)


def model() -> None:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    with sumprod.plate('p "1"', 4, 2):
        sumprod.sample('x "1"', dist.Normal(z, 1.0), obs=torch.zeros(2))


def test_visualization_as_text(tmp_path: Path) -> None:
    trace = sumprod.handlers.trace(model, graph_type="dense").get_trace()
    util.save_visualization(trace, tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text().splitlines() == [
        "digraph {",
        '  "z" [shape=circle, style=filled, fillcolor=white]',
        '  "x \\"1\\"" [shape=circle, style=filled, fillcolor=grey]',
        '  "z" -> "x \\"1\\""',
        "}",
    ]


def test_visualization_as_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Graphviz's program, which copies its input."""
    trace = sumprod.handlers.trace(model).get_trace()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="program dot is not installed"):
        util.save_visualization(trace, str(tmp_path / "graph"))
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\n[ "$1" = -Tpdf ] && [ "$2" = -o ] && cat > "$3"\n')
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    util.save_visualization(trace, str(tmp_path / "graph"))
    assert (tmp_path / "graph.pdf").read_text().startswith("digraph {")
