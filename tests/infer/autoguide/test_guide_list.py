"""Guides composed of parts."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Gamma, Normal
from sumprod.infer import SVI, Trace_ELBO
from sumprod.infer.autoguide import (
    AutoCallable,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
)
from sumprod.optim import Adam


def model() -> None:
    m = sumprod.sample("m", Normal(0.0, 1.0))
    with sumprod.plate("a", 3):
        s = sumprod.sample("s", Gamma(2.0, 2.0))
        sumprod.sample("x", Normal(m, s))


def by_hand() -> dict[str, Any]:
    loc = sumprod.param("loc", torch.tensor(1.0))
    return {"m": sumprod.sample("m", Normal(loc, 0.5))}


def example() -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoDelta(handlers.block(model, expose=["m"])))
    guide.append(AutoDiagonalNormal(handlers.block(model, expose=["s"])))
    guide.append(AutoNormal(handlers.block(model, expose=["x"])))
    return guide


def test_parts_are_run_in_order() -> None:
    guide = example()
    assert list(guide()) == ["m", "s", "x"]
    assert list(sumprod.get_param_store()) == [
        "AutoGuideList.0.m",
        "AutoGuideList.1.loc",
        "AutoGuideList.1.scale",
        "AutoGuideList.2.locs.x",
        "AutoGuideList.2.scales.x",
    ]
    assert [name for name, _ in guide.named_parameters()] == [
        "0.m_unconstrained",
        "1.loc",
        "1.scale_unconstrained",
        "2.locs.x_unconstrained",
        "2.scales.x_unconstrained",
    ]
    assert list(guide.median()) == ["m", "s", "x"]
    assert {n: tuple(v.shape) for n, v in guide.quantiles([0.1, 0.9]).items()} == {
        "m": (2,),
        "s": (2, 3),
        "x": (2, 3),
    }
    assert "_AutoGuideList.1_latent" in handlers.trace(guide).get_trace().nodes
    assert isinstance(guide[1], AutoDiagonalNormal)
    assert len(guide) == 3
    assert list(AutoGuideList(model).median()) == []


def test_a_list_can_be_asked_for_medians_first() -> None:
    assert list(example().median()) == ["m", "s", "x"]
    assert list(example().quantiles([0.5])) == ["m", "s", "x"]


def test_functions_are_parts() -> None:
    guide = AutoGuideList(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide.add(by_hand)  # the older name
    guide.add(AutoDiagonalNormal(handlers.block(model, hide=["m"])))
    assert isinstance(guide[0], AutoCallable)
    assert list(guide()) == ["m", "s", "x"]
    assert list(guide.median()) == ["s", "x"]
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    before = sumprod.get_param_store()["loc"].item()
    svi.step()
    assert sumprod.get_param_store()["loc"].item() != before


def test_a_function_may_return_nothing() -> None:
    def guide() -> None:
        sumprod.sample("m", Normal(0.0, 1.0))

    assert AutoCallable(model, guide)() == {}
    parts = AutoGuideList(model)
    parts.append(guide)
    assert parts() == {}


def test_a_callable_has_the_medians_it_is_given() -> None:
    guide = AutoCallable(model, by_hand, lambda *args: {"m": torch.tensor(3.0)})
    assert guide.median() == {"m": torch.tensor(3.0)}
    assert AutoCallable(model, by_hand).median() == {}
    with pytest.raises(NotImplementedError, match="AutoCallable does not define quantiles"):
        guide.quantiles([0.5])


def test_lists_may_be_nested() -> None:
    inner = AutoGuideList(handlers.block(model, hide=["m"]))
    inner.append(AutoNormal(handlers.block(model, expose=["s"])))
    inner.append(AutoNormal(handlers.block(model, expose=["x"])))
    outer = AutoGuideList(model)
    outer.append(AutoDelta(handlers.block(model, expose=["m"])))
    outer.append(inner)
    assert list(outer()) == ["m", "s", "x"]
    assert "AutoGuideList.1.0.locs.s" in sumprod.get_param_store()
    assert list(handlers.trace(outer).get_trace().nodes).count("a") == 1


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (lambda: 3, TypeError, "Expected the part AutoGuideList.1 to return a dict of values by site, got 3"),
        (AutoDelta(model), ValueError, r"samples \['m'\], which an earlier part of AutoGuideList"),
        (
            AutoDelta(lambda: sumprod.sample("q", Normal(0.0, 1.0))),
            ValueError,
            r"samples 'q', which is no latent site of the list's model: \['m', 's', 'x'\]",
        ),
        (
            AutoDelta(lambda: sumprod.sample("s", Normal(torch.zeros(7), 1.0))),
            ValueError,
            r"site 's' has shape \(3,\) in the model of AutoGuideList and \(7,\) in that of a part",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: Any, error: type[Exception], message: str) -> None:
    guide = AutoGuideList(model)
    guide.append(AutoDelta(handlers.block(model, expose=["m"])))
    guide.append(copy.deepcopy(part))
    with pytest.raises(error, match=message):
        guide()


def test_only_guides_can_be_appended() -> None:
    guide = AutoGuideList(model)
    with pytest.raises(TypeError, match="Expected a guide to append to AutoGuideList, got 3"):
        guide.append(3)  # type: ignore[arg-type]
    other = AutoGuideList(model)
    part = AutoDelta(model)
    other.append(part)
    with pytest.raises(RuntimeError, match=r"AutoGuideList\.0 is part of another AutoGuideList already"):
        guide.append(part)


def only_m() -> None:
    sumprod.sample("m", Normal(0.0, 1.0))


@pytest.mark.parametrize("twice", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_copies_are_whole(twice: Any) -> None:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(only_m))
    guide()
    twin = twice(guide)
    sumprod.clear_param_store()
    assert twin[0].master() is twin
    assert list(twin()) == ["m"]
    torch.testing.assert_close(twin.median(), guide.median())
    assert all(a is not b for a, b in zip(twin.parameters(), guide.parameters(), strict=True))
