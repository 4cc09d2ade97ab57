"""Plates of automatic guides: made again like the model's, with full-size parameters when subsampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Dirichlet, LogNormal, Normal
from sumprod.infer import SVI, Trace_ELBO
from sumprod.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoNormal,
    init_to_value,
)
from sumprod.optim import SGD


def subsampled() -> torch.Tensor:
    m = sumprod.sample("m", Normal(0.0, 1.0))
    with sumprod.plate("rows", 6, subsample_size=2, dim=-2) as i:
        with sumprod.plate("columns", 4, dim=-1):
            sumprod.sample("x", LogNormal(m, 1.0))
        sumprod.sample("d", Dirichlet(torch.ones(2, 1, 3)))
    return i


@pytest.mark.parametrize("family", [AutoDelta, AutoNormal])
def test_local_parameters_have_full_size(family: Any) -> None:
    guide = family(subsampled)
    assert {name: tuple(value.shape) for name, value in guide().items()} == {
        "m": (),
        "x": (2, 4),
        "d": (2, 1, 3),
    }
    store = sumprod.get_param_store()
    stem = "AutoDelta." if family is AutoDelta else "AutoNormal.locs."
    assert store[stem + "x"].shape == (6, 4)
    assert store[stem + "d"].shape == ((6, 1, 3) if family is AutoDelta else (6, 1, 2))
    assert {name: tuple(value.shape) for name, value in guide.median().items()} == {
        "m": (),
        "x": (6, 4),
        "d": (6, 1, 3),
    }
    assert guide.quantiles([0.2, 0.8])["x"].shape == (2, 6, 4)


def test_the_guide_uses_the_rows_that_it_draws() -> None:
    guide = AutoDelta(subsampled)
    guide()
    guide.x = torch.arange(1.0, 25.0).reshape(6, 4)
    seen = set()
    for _ in range(20):
        trace = handlers.trace(guide).get_trace()
        rows = trace.nodes["rows"]["value"]
        torch.testing.assert_close(trace.nodes["x"]["value"], torch.arange(1.0, 25.0).reshape(6, 4)[rows])
        assert trace.nodes["x"]["scale"] == 3.0
        assert torch.equal(handlers.replay(subsampled, trace=trace)(), rows)
        seen.update(rows.tolist())
    assert seen == set(range(6))  # by chance, one row is missed in 1 of 500 runs; the seed is fixed


def test_a_subsample_leaves_the_gradients_of_the_other_rows_alone() -> None:
    guide = AutoNormal(subsampled)
    guide()
    trace = handlers.trace(guide).get_trace()
    trace.nodes["x"]["value"].sum().backward()
    rows = guide.locs.x_unconstrained.grad.abs().sum(-1).nonzero().flatten()
    assert rows.tolist() == sorted(trace.nodes["rows"]["value"].tolist())


def test_initial_values_are_repeated_to_full_size() -> None:
    start = init_to_value(values={"x": torch.arange(1.0, 9.0).reshape(2, 4)})
    x = AutoDelta(subsampled, start).median()["x"]
    torch.testing.assert_close(x, torch.arange(1.0, 9.0).reshape(2, 4).repeat(3, 1))


def test_packed_guides_warn_of_subsamples() -> None:
    with pytest.warns(UserWarning, match=r"sites x, d are inside subsampled plates \(rows\)"):
        AutoDiagonalNormal(subsampled)()


def test_a_subsampled_guide_learns_every_row() -> None:
    data = torch.linspace(-2.0, 2.0, 12)

    def model() -> None:
        with sumprod.plate("data", 12, subsample_size=4) as i:
            z = sumprod.sample("z", Normal(torch.zeros(4), 1.0))
            sumprod.sample("x", Normal(z, 0.5), obs=data[i])

    guide = AutoDelta(model)
    svi = SVI(model, guide, SGD({"lr": 0.02}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    # The mode of z given x is 0.8 x. A row is reached by about 100 steps, each of which shrinks its error by
    # the factor 1 - 0.02 * 3 * 5.
    torch.testing.assert_close(guide.median()["z"], 0.8 * data, atol=1e-4, rtol=0)


def test_plates_may_be_made_by_the_user() -> None:
    def model(data: torch.Tensor) -> None:
        with sumprod.plate("data", len(data), subsample_size=3) as i:
            z = sumprod.sample("z", Normal(torch.zeros(3), 1.0))
            sumprod.sample("x", Normal(z, 1.0), obs=data[i])

    made = []

    def create_plates(data: torch.Tensor) -> Any:
        made.append(sumprod.plate("data", len(data), subsample=torch.tensor([5, 1, 3])))
        return made[-1] if len(made) % 2 else [made[-1]]

    guide = AutoNormal(model, create_plates=create_plates)
    for _ in range(2):
        trace = handlers.trace(guide).get_trace(torch.arange(8.0))
        assert guide.plates["data"] is made[-1]
        assert trace.nodes["z"]["value"].shape == (3,)
    assert len(made) == 2
    assert sumprod.get_param_store()["AutoNormal.locs.z"].shape == (8,)


def test_create_plates_must_return_plates() -> None:
    for value in ([3], "p", {"data": 1}):
        guide = AutoNormal(lambda: None, create_plates=lambda value=value: value)
        with pytest.raises(AssertionError, match=r"create_plates\(\) returned a non-plate"):
            guide()


def test_parts_of_a_list_share_its_plates() -> None:
    guide = AutoGuideList(subsampled)
    guide.append(AutoDelta(handlers.block(subsampled, expose=["x"])))
    guide.append(AutoNormal(handlers.block(subsampled, hide=["x"])))
    trace = handlers.trace(guide).get_trace()
    assert [name for name in trace.nodes if name in ("rows", "columns")] == ["rows", "columns"]
    frames = {name: trace.nodes[name]["cond_indep_stack"] for name in ("x", "d")}
    assert [f.name for f in frames["x"]] == ["rows", "columns"]
    assert [f.name for f in frames["d"]] == ["rows"]
    part = AutoDelta(handlers.block(subsampled, expose=["x"]), create_plates=lambda: [])
    broken = AutoGuideList(subsampled)
    broken.append(part)
    with pytest.raises(ValueError, match="give create_plates to the list"):
        broken()


def test_a_plate_without_size_is_made_without_size() -> None:
    def model() -> None:
        with sumprod.plate("p", dim=-2):
            sumprod.sample("x", Normal(torch.zeros(3, 1), 1.0))

    trace = handlers.trace(AutoNormal(model)).get_trace()
    assert trace.nodes["x"]["value"].shape == (3, 1)
    assert trace.nodes["x"]["cond_indep_stack"][0][:3] == ("p", -2, -1)


def test_plates_close_after_an_error() -> None:
    guide = AutoNormal(subsampled)
    guide()

    def fail(site: Any) -> bool:
        return site["name"] == "x"

    with pytest.raises(handlers.NonlocalExit):
        handlers.escape(guide, escape_fn=fail)()
    assert not sumprod.runtime.am_i_wrapped()
    assert guide()["x"].shape == (2, 4)
