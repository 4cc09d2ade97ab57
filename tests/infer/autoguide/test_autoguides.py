"""What all automatic guides share, and what each promises."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers, settings
from sumprod.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)
from sumprod.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from sumprod.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_sample,
    init_to_value,
)
from sumprod.nn import PyroModule
from sumprod.optim import Adam

ALL = [
    AutoDelta,
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoLaplaceApproximation,
]
NORMALS = ALL[1:5]


def model() -> None:
    """Sites with and without plates and event dims; a support smaller than the value (simplex)."""
    m = sumprod.sample("m", Normal(0.0, 1.0))
    with sumprod.plate("a", 3, dim=-1):
        s = sumprod.sample("s", Gamma(2.0, 2.0))
        with sumprod.plate("b", 4, dim=-2):
            sumprod.sample("x", Normal(m, s))
            sumprod.sample("d", Dirichlet(torch.ones(3)))
    sumprod.sample("net.w", Normal(torch.zeros(2, 2), 1.0).to_event(2))


SHAPES = {"m": (), "s": (3,), "x": (4, 3), "d": (4, 3, 3), "net.w": (2, 2)}
REAL = {"m": (), "s": (3,), "x": (4, 3), "d": (4, 3, 2), "net.w": (2, 2)}
DIM = sum(torch.Size(shape).numel() for shape in REAL.values())


def shapes(values: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


# ---- sites, shapes, names


@pytest.mark.parametrize("family", ALL)
def test_values_have_the_shapes_of_their_sites(family: Any) -> None:
    guide = family(model)
    assert shapes(guide()) == SHAPES
    assert shapes(guide.median()) == SHAPES
    trace = handlers.trace(guide).get_trace()
    trace.compute_log_prob()
    for name, shape in SHAPES.items():
        site = trace.nodes[name]
        assert tuple(site["value"].shape) == shape
        assert site["fn"].event_dim == {"d": 1, "net.w": 2}.get(name, 0)
        assert site["log_prob"].shape == shape[: len(shape) - site["fn"].event_dim]
    assert guide.call()[0].shape == (4, 3, 3)  # sorted by name: d, m, net.w, s, x
    assert [value.shape for value in guide.call()] == [torch.Size(SHAPES[name]) for name in sorted(SHAPES)]


def test_trap_43_parameters_are_named_after_class_and_site() -> None:
    names = {
        AutoDelta: {f"AutoDelta.{name}": shape for name, shape in SHAPES.items()},
        AutoNormal: {f"AutoNormal.{kind}.{n}": s for n, s in REAL.items() for kind in ("locs", "scales")},
        AutoDiagonalNormal: {"AutoDiagonalNormal.loc": (DIM,), "AutoDiagonalNormal.scale": (DIM,)},
        AutoMultivariateNormal: {
            "AutoMultivariateNormal.scale": (DIM,),
            "AutoMultivariateNormal.scale_tril": (DIM, DIM),
            "AutoMultivariateNormal.loc": (DIM,),
        },
        AutoLowRankMultivariateNormal: {
            "AutoLowRankMultivariateNormal.scale": (DIM,),
            "AutoLowRankMultivariateNormal.cov_factor": (DIM, round(DIM**0.5)),
            "AutoLowRankMultivariateNormal.loc": (DIM,),
        },
        AutoLaplaceApproximation: {"AutoLaplaceApproximation.loc": (DIM,)},
    }
    for family, expected in names.items():
        sumprod.clear_param_store()
        guide = family(model)
        guide()
        assert shapes(sumprod.get_param_store()) == expected
        leaves = {id(leaf) for leaf in guide.parameters()}
        assert {id(leaf) for _, leaf in sumprod.get_param_store().named_parameters()} == leaves


@pytest.mark.parametrize("family", NORMALS)
def test_quantiles_take_numbers_lists_and_tensors(family: Any) -> None:
    guide = family(model)
    guide()
    for q in ([0.1, 0.5, 0.9], torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.1, 0.5, 0.9]).double()):
        values = guide.quantiles(q)
        assert shapes(values) == {name: (3, *shape) for name, shape in SHAPES.items()}
    assert shapes(guide.quantiles(0.5)) == {name: (1, *shape) for name, shape in SHAPES.items()}
    median = guide.median()
    for name, value in values.items():
        torch.testing.assert_close(value[1], median[name])
        assert not value.requires_grad
        if name != "d":  # the parts of a simplex do not all grow together
            assert (value[0] < value[1]).all()
            assert (value[1] < value[2]).all()


def test_quantiles_are_those_of_the_samples() -> None:
    def program() -> None:
        sumprod.sample("x", LogNormal(0.0, 1.0).expand([2]).to_event(1))
        sumprod.sample("u", Uniform(1.0, 3.0))

    for family in NORMALS:
        sumprod.clear_param_store()
        guide = family(program, init_loc_fn=init_to_sample, init_scale=0.7)
        guide()
        with sumprod.plate("draws", 4000), torch.no_grad():
            draws = guide()
        q = torch.tensor([0.2, 0.6])
        for name, value in guide.quantiles(q).items():
            below = (draws[name] <= value.unsqueeze(1)).double().mean(1)
            # Binomial counts of 4,000: 5 standard deviations are at most 0.04; 24 checks at 6e-7 each.
            torch.testing.assert_close(
                below,
                q.double().reshape((-1,) + (1,) * (below.dim() - 1)).expand_as(below),
                atol=0.04,
                rtol=0,
            )


def test_medians_and_quantiles_set_the_guide_up() -> None:
    for family in (AutoDelta, *NORMALS):
        sumprod.clear_param_store()
        assert shapes(family(model).median()) == SHAPES
        assert shapes(family(model).quantiles([0.5])) == {name: (1, *shape) for name, shape in SHAPES.items()}


def test_the_packed_vector_can_be_sampled_alone() -> None:
    for family in ALL[2:]:
        guide = family(model)
        assert guide.sample_latent().shape == (DIM,)
        assert guide.latent_dim == DIM
        assert guide.get_posterior().event_shape == (DIM,)


def test_transforms_lead_from_the_base_distribution_to_the_posterior() -> None:
    for family in (AutoDiagonalNormal, AutoMultivariateNormal):
        guide = family(model)
        guide()
        if family is AutoMultivariateNormal:
            guide.scale_tril = torch.eye(DIM) + torch.randn(DIM, DIM).tril(-1)
        x = torch.randn(DIM)
        transform = guide.get_transform()
        y = transform(x)
        expected = guide.get_base_dist().log_prob(x) - transform.log_abs_det_jacobian(x, y)
        torch.testing.assert_close(guide.get_posterior().log_prob(y), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(
        NotImplementedError, match="AutoLowRankMultivariateNormal does not define get_transform"
    ):
        AutoLowRankMultivariateNormal(model).get_transform()


@pytest.mark.parametrize("family", ALL)
def test_particles_in_a_plate(family: Any) -> None:
    guide = family(lambda: (sumprod.sample("m", Normal(0.0, 1.0)), sumprod.sample("s", Gamma(2.0, 2.0))))
    guide()
    with sumprod.plate("particles", 7, dim=-3):
        assert shapes(guide()) == {"m": (7, 1, 1), "s": (7, 1, 1)}


def test_sites_may_be_called_like_attributes_of_the_guide() -> None:
    names = ["median", "plates", "training", "model", "loc", "forward", "locs.x", "scales"]

    def program() -> None:
        for name in names:
            sumprod.sample(name, Normal(0.0, 1.0))

    for family in ALL:
        guide = family(program)
        assert list(guide()) == names
        assert list(guide()) == list(guide.median()) == names
    assert "AutoDelta.median" in sumprod.get_param_store()
    assert "AutoNormal.scales.locs.x" in sumprod.get_param_store()


@pytest.mark.parametrize("names", [("x", "x.y"), ("x.y", "x")])
def test_a_site_may_not_be_the_parent_of_another(names: tuple[str, str]) -> None:
    guide = AutoDelta(lambda: [sumprod.sample(name, Normal(0.0, 1.0)) for name in names])
    with pytest.raises(ValueError, match=r"there are sites called 'x' and 'x\.<\.\.\.>'"):
        guide()


def test_arguments_reach_the_model() -> None:
    def program(n: int, *, scale: float) -> None:
        with sumprod.plate("data", n):
            sumprod.sample("x", LogNormal(0.0, scale))

    for family in ALL:
        sumprod.clear_param_store()
        assert family(program)(5, scale=2.0)["x"].shape == (5,)
        assert family(program).median(5, scale=2.0)["x"].shape == (5,)


def test_the_model_runs_once_for_the_prototype() -> None:
    runs = []

    def program() -> None:
        runs.append(1)
        sumprod.sample("x", Normal(0.0, 1.0))

    guide = AutoNormal(program)
    assert runs == []
    assert guide.prototype_trace is None
    trace = handlers.trace(lambda: [guide() for _ in range(1)]).get_trace()
    assert "x" in trace.nodes
    guide()
    guide.median()
    assert len(runs) == 1
    assert guide.prototype_trace is not None
    assert guide.prototype_trace.stochastic_nodes == ["x"]


def test_parameters_of_the_model_are_not_the_guides() -> None:
    class Module(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self) -> Any:
            return sumprod.sample("x", Normal(2 * self.w, 1.0))

    guide = AutoNormal(Module())
    guide()
    assert [name for name, _ in guide.named_parameters()] == [
        "locs.x_unconstrained",
        "scales.x_unconstrained",
    ]
    assert guide.prototype_trace is not None
    assert not guide.prototype_trace.nodes["x"]["fn"].loc.requires_grad


def test_initial_values_and_scales() -> None:
    start = init_to_value(values={"x": torch.tensor([2.0, 3.0])})

    def program() -> None:
        sumprod.sample("x", LogNormal(torch.zeros(2), 1.0).to_event(1))

    assert AutoDelta(program, start)()["x"].tolist() == pytest.approx([2.0, 3.0])
    for family, correlation in ((AutoNormal, 0), (AutoDiagonalNormal, 0), (AutoMultivariateNormal, 0)):
        guide = family(program, init_loc_fn=start, init_scale=0.3)
        assert guide.median()["x"].tolist() == pytest.approx([2.0, 3.0]), correlation
        # One standard deviation up on the real line.
        up = guide.quantiles([0.8413447])["x"][0]
        torch.testing.assert_close(up.log(), torch.tensor([2.0, 3.0]).log() + 0.3, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), torch.tensor(1.0), "1", True])
def test_bad_scales_are_refused(scale: Any) -> None:
    for family in NORMALS:
        with pytest.raises(ValueError, match=r"Expected init_scale > 0\. but got"):
            family(model, init_scale=scale)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_bad_ranks_are_refused(rank: Any) -> None:
    with pytest.raises(ValueError, match="Expected rank > 0 but got"):
        AutoLowRankMultivariateNormal(model, rank=rank)


def test_a_strategy_must_be_callable() -> None:
    with pytest.raises(
        TypeError, match="Expected init_loc_fn to be a strategy such as init_to_median, got 'median'"
    ):
        AutoDelta(model, "median")  # type: ignore[arg-type]


def test_an_initial_value_outside_the_support_is_refused() -> None:
    def program() -> None:
        sumprod.sample("x", Beta(1.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'x' is outside the support of its distribution.*: \[1\.5\]"):
        AutoDelta(program, init_to_value(values={"x": 1.5}))()


# ---- what the guides cannot do


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("fn", [Categorical(torch.ones(3)), Bernoulli(0.5)])
def test_discrete_sites_must_be_hidden(family: Any, fn: Any) -> None:
    def program() -> None:
        sumprod.sample("k", fn)
        sumprod.sample("x", Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="Continuous inference cannot handle discrete sample site 'k'"):
        family(program)()
    sumprod.clear_param_store()
    assert list(family(handlers.block(program, hide=["k"]))()) == ["x"]


@pytest.mark.parametrize("family", ALL)
def test_sequential_plates_are_refused(family: Any) -> None:
    def program() -> None:
        for i in sumprod.plate("data", 3):
            sumprod.sample(f"x{i}", Normal(0.0, 1.0))

    with pytest.raises(
        NotImplementedError,
        match=r"AutoGuide does not support sequential pyro\.plate: 'data' around site 'x0'",
    ):
        family(program)()


def test_models_without_latent_sites() -> None:
    def program() -> None:
        sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(1.0))

    assert AutoDelta(program)() == {}
    assert AutoNormal(program)() == {}
    for family in ALL[2:]:
        with pytest.raises(RuntimeError, match="found no latent variables; Use an empty guide instead"):
            family(program)()


def test_stochastic_functions_must_be_hidden() -> None:
    def program() -> None:
        sumprod.sample("f", lambda: torch.tensor(1.0))

    with pytest.raises(TypeError, match="needs a distribution at site 'f'"):
        AutoNormal(program, init_loc_fn=lambda site: None)()


def test_the_base_classes_say_what_is_missing() -> None:
    for method in ("median", "quantiles"):
        with pytest.raises(NotImplementedError, match=rf"AutoGuide does not define {method}\(\)"):
            getattr(AutoGuide(model), method)(*[0.5] * (method == "quantiles"))

    class Mine(AutoContinuous):
        def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
            return Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    guide = Mine(model)
    assert shapes(guide()) == SHAPES
    with pytest.raises(NotImplementedError, match=r"Mine does not define _loc_scale\(\)"):
        guide.quantiles([0.5])


# ---- densities and training


@pytest.mark.parametrize("family", NORMALS)
def test_the_density_of_a_guide_is_that_of_its_samples(family: Any) -> None:
    """A normal pushed through exp is a LogNormal; its log-density is that of the two sites together."""
    guide = family(lambda: sumprod.sample("x", LogNormal(0.0, 1.0)), init_scale=0.4)
    trace = handlers.trace(guide).get_trace()
    trace = handlers.trace(guide).get_trace()
    (loc,) = guide.median().values()
    torch.testing.assert_close(
        trace.log_prob_sum(),
        LogNormal(loc.log(), 0.4).log_prob(trace.nodes["x"]["value"])
        if family is not AutoLowRankMultivariateNormal
        else LogNormal(loc.log(), guide.get_posterior().variance[0].sqrt()).log_prob(
            trace.nodes["x"]["value"]
        ),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_elbo_of_a_constrained_site_counts_the_change_of_variables(loss: Any) -> None:
    """With q = p the loss is zero for every draw."""
    torch.manual_seed(0)
    guide = AutoNormal(
        lambda: sumprod.sample("x", LogNormal(0.7, 0.3)),
        init_loc_fn=init_to_value(values={"x": torch.tensor(0.7).exp()}),
        init_scale=0.3,
    )
    for _ in range(5):
        assert abs(loss().loss(guide.model, guide)) < 1e-5
        guide()


def test_the_multivariate_guide_finds_a_gaussian_posterior() -> None:
    torch.manual_seed(0)
    x = torch.tensor([[1.0, 0.5], [1.0, -1.0], [1.0, 2.0], [0.0, 1.0]])
    y = torch.tensor([1.0, -1.0, 2.0, 0.5])
    precision = torch.eye(2) + x.T @ x / 0.25
    covariance = precision.inverse()
    mean = covariance @ x.T @ y / 0.25

    def program() -> None:
        w = sumprod.sample("w", Normal(torch.zeros(2), 1.0).to_event(1))
        with sumprod.plate("data", 4):
            sumprod.sample("y", Normal((x * w).sum(-1), 0.5), obs=y)

    guide = AutoMultivariateNormal(program)
    optim = sumprod.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99}
    )
    svi = SVI(program, guide, optim, Trace_ELBO(10, 1, vectorize_particles=True))
    for _ in range(500):
        svi.step()
        optim.step()
    found = guide.get_posterior()
    exact = MultivariateNormal(mean, covariance)
    # Noise of the last, tiny steps: far below a thousandth of a nat.
    assert torch.distributions.kl_divergence(found, exact).item() < 0.002
    torch.testing.assert_close(found.mean, mean, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", ALL)
def test_guides_are_copied_and_pickled(family: Any) -> None:
    guide = family(model)
    guide()
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert type(twin) is family
        for (name, a), (other, b) in zip(twin.named_parameters(), guide.named_parameters(), strict=True):
            assert name == other
            assert a is not b
            assert torch.equal(a, b)
        torch.testing.assert_close(twin.median(), guide.median())
        assert shapes(twin()) == SHAPES


def test_state_dicts_go_from_guide_to_guide() -> None:
    first = AutoDiagonalNormal(model)
    first()
    state = {name: value + 1 for name, value in first.state_dict().items()}
    sumprod.clear_param_store()
    second = AutoDiagonalNormal(model)
    second()
    second.load_state_dict(state)
    torch.testing.assert_close(second.loc, first.loc + 1)
    second()
    torch.testing.assert_close(sumprod.get_param_store()["AutoDiagonalNormal.loc"], first.loc + 1)


def test_a_stored_guide_continues() -> None:
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    state = sumprod.get_param_store().get_state()
    expected = guide.median()
    sumprod.clear_param_store()
    sumprod.get_param_store().set_state(state)
    again = AutoNormal(model)
    again()
    torch.testing.assert_close(again.median(), expected)


def test_local_parameters() -> None:
    with settings.context(module_local_params=True):
        guide = AutoNormal(model)
        guide()
        loss = Trace_ELBO()(model, guide)
        optimiser = torch.optim.Adam(guide.parameters(), lr=0.1)
        before = guide.median()
        loss().backward()
        optimiser.step()
        assert len(sumprod.get_param_store()) == 0
        assert all(not torch.equal(before[name], value) for name, value in guide.median().items())


def test_double_precision_stays() -> None:
    def program() -> None:
        sumprod.sample("x", LogNormal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    for family in ALL:
        sumprod.clear_param_store()
        guide = family(program)
        assert guide()["x"].dtype == torch.float64
        assert guide.median()["x"].dtype == torch.float64
        assert all(p.dtype == torch.float64 for p in guide.parameters())
        assert Trace_ELBO().loss_and_grads(program, guide) is not None
