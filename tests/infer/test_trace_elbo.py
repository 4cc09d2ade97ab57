"""`Trace_ELBO`: values, unbiased gradients, masks and scales, warnings, and stacked log-densities."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO, _grouped_log_prob
from sumprod.infer.trace_elbo import compute_guide_densities
from tests.programs.expectation import (
    Case,
    Values,
    all_bits,
    exact_gradient,
    expected_gradient,
    quadrature_gradient,
)

AUXILIARY = {"is_auxiliary": True}


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def number(value: float) -> Tensor:
    return torch.tensor(value)


# ---- values


def test_loss_is_minus_the_log_ratio_at_the_guides_draw() -> None:
    drawn: dict[str, Tensor] = {}

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(1.0, 2.0))
        sumprod.sample("x", dist.Poisson(z.exp()), obs=number(3.0))

    def guide() -> None:
        drawn["z"] = sumprod.sample("z", dist.Normal(0.5, 0.3))

    loss = Trace_ELBO().loss(model, guide)
    z = drawn["z"]
    log_ratio = (
        dist.Normal(1.0, 2.0).log_prob(z)
        + dist.Poisson(z.exp()).log_prob(number(3.0))
        - dist.Normal(0.5, 0.3).log_prob(z)
    )
    assert loss == pytest.approx(-log_ratio.item(), rel=1e-6)


def test_particles_are_averaged() -> None:
    sumprod.set_rng_seed(0)

    def model() -> None:
        sumprod.sample("x", dist.Normal(sumprod.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=number(2.0))

    def guide() -> None:
        sumprod.sample("z", dist.Normal(sumprod.param("loc", number(0.0)), 1.0))

    single = Trace_ELBO()
    losses, grads = [], []
    for _ in range(3):
        losses.append(single.loss_and_grads(model, guide))
        leaf = sumprod.param("loc").unconstrained()
        grads.append(leaf.grad.item())
        leaf.grad = None
    sumprod.set_rng_seed(0)
    assert Trace_ELBO(num_particles=3).loss_and_grads(model, guide) == pytest.approx(sum(losses) / 3)
    assert leaf.grad.item() == pytest.approx(sum(grads) / 3)


@pytest.mark.parametrize("form", ["handler", "distribution"])
def test_masked_out_densities_do_not_leak(form: str) -> None:
    """A mask selects by `where`: a density of -inf under it spoils neither value nor gradient."""
    mask = torch.tensor([True, False])

    def model() -> None:
        fn = dist.Uniform(0.0, sumprod.param("high", torch.full((2,), 2.0)), validate_args=False)
        data = torch.tensor([0.5, 7.0])
        with sumprod.plate("rows", 2):
            if form == "handler":
                with handlers.mask(mask=mask):
                    sumprod.sample("x", fn, obs=data)
            else:
                sumprod.sample("x", fn.mask(mask), obs=data)

    assert Trace_ELBO().loss_and_grads(model, lambda: None) == pytest.approx(math.log(2))
    assert sumprod.param("high").unconstrained().grad.tolist() == pytest.approx([0.5, 0.0])


def test_missing_data_under_a_mask() -> None:
    def model() -> None:
        loc = sumprod.param("loc", torch.zeros(2))
        with sumprod.plate("rows", 2):
            fn = dist.Normal(loc, 1.0).mask(torch.tensor([True, False]))
            sumprod.sample("x", fn, obs=torch.tensor([0.5, math.nan]))

    expected = -dist.Normal(0.0, 1.0).log_prob(number(0.5)).item()
    assert Trace_ELBO().loss_and_grads(model, lambda: None) == pytest.approx(expected)
    assert sumprod.param("loc").unconstrained().grad.tolist() == pytest.approx([-0.5, 0.0])


def test_scale_counts_outside_the_mask_and_multiplies_nested_plates() -> None:
    def model() -> None:
        rows, columns = (
            sumprod.plate("rows", 6, subsample_size=2),
            sumprod.plate("columns", 10, subsample_size=5),
        )
        mask = torch.tensor([True, False])
        with rows, columns, handlers.mask(mask=mask), handlers.scale(scale=0.5):
            sumprod.sample("x", dist.Delta(torch.zeros(5, 2), log_density=1.0), obs=torch.zeros(5, 2))

    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(-3 * 2 * 0.5 * 5)


def test_sequential_plates_scale_too() -> None:
    """Three of six iterations count twice."""

    def model() -> None:
        for i in sumprod.plate("loop", 6, subsample_size=3):
            sumprod.sample(f"x{i}", dist.Delta(number(0.0), log_density=1.0), obs=number(0.0))

    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(-6)


# ---- gradients are unbiased: exact expectations over everything that the guide can draw


def assert_unbiased(case: Case, elbo: Any = None) -> None:
    loss, gradients = exact_gradient(case)
    actual_loss, actual = expected_gradient(sumprod, case, elbo or Trace_ELBO())
    assert actual_loss == pytest.approx(loss, abs=1e-9)
    for name, expected in gradients.items():
        assert torch.allclose(actual[name], expected, rtol=1e-9, atol=1e-9), (name, actual[name], expected)


def nested_plates() -> Case:
    """Coins at three depths, a mask in the middle, and a site after the plates that sees their sum."""
    data = torch.tensor([[0.1, 1.2], [2.3, -0.3]], dtype=torch.float64)

    def model() -> None:
        g = sumprod.sample("g", dist.Bernoulli(number(0.6)))
        with sumprod.plate("rows", 2, dim=-2):
            a = sumprod.sample("a", dist.Bernoulli(0.2 + 0.5 * g))
            with sumprod.plate("columns", 2, dim=-1):
                sumprod.sample("x", dist.Normal(g + 2.0 * a, 1.0), obs=data)
        sumprod.sample("y", dist.Normal(a.sum(), 1.0), obs=number(1.0))

    def guide() -> None:
        g = sumprod.sample("g", dist.Bernoulli(logits=sumprod.param("qg")))
        with sumprod.plate("rows", 2, dim=-2):
            sumprod.sample("a", dist.Bernoulli(logits=sumprod.param("qa").unsqueeze(-1) + 0.3 * g))

    def log_q(p: Values, v: Values) -> Tensor:
        rows = dist.Bernoulli(logits=p["qa"].unsqueeze(-1) + 0.3 * v["g"]).log_prob(v["a"]).sum()
        return dist.Bernoulli(logits=p["qg"]).log_prob(v["g"]) + rows

    def elbo(p: Values, v: Values) -> Tensor:
        g, a = v["g"], v["a"]
        joint = dist.Bernoulli(number(0.6)).log_prob(g) + dist.Bernoulli(0.2 + 0.5 * g).log_prob(a).sum()
        likelihood = dist.Normal(g + 2.0 * a, 1.0).log_prob(data).sum() + dist.Normal(a.sum(), 1.0).log_prob(
            number(1.0)
        )
        return joint + likelihood - log_q(p, v)

    params = {"qg": 0.3, "qa": [0.1, -0.2]}
    return Case(
        "nested", lambda _: (model, guide), params, {"g": all_bits(), "a": all_bits(2, 1)}, elbo, log_q
    )


def auxiliary_in_a_plate() -> Case:
    """Auxiliary coins in a plate that the latent coins depend on."""

    def model() -> None:
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", dist.Bernoulli(number(0.3)))
            sumprod.sample("x", dist.Normal(2.0 * z, 1.0), obs=torch.tensor([1.5, -0.2]))

    def guide() -> None:
        with sumprod.plate("rows", 2):
            a = sumprod.sample("a", dist.Bernoulli(logits=sumprod.param("qa")), infer=AUXILIARY)
            sumprod.sample("z", dist.Bernoulli(logits=sumprod.param("qz") + 2.0 * a))

    def log_q(p: Values, v: Values) -> Tensor:
        second = dist.Bernoulli(logits=p["qz"] + 2.0 * v["a"]).log_prob(v["z"])
        return (dist.Bernoulli(logits=p["qa"]).log_prob(v["a"]) + second).sum()

    def elbo(p: Values, v: Values) -> Tensor:
        likelihood = dist.Normal(2.0 * v["z"], 1.0).log_prob(torch.tensor([1.5, -0.2]))
        return (dist.Bernoulli(number(0.3)).log_prob(v["z"]) + likelihood).sum() - log_q(p, v)

    params = {"qa": [1.5, 0.1], "qz": [-0.4, 0.6]}
    support = {"a": all_bits(2), "z": all_bits(2)}
    return Case("auxiliary", lambda _: (model, guide), params, support, elbo, log_q)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make", [nested_plates, auxiliary_in_a_plate])
@pytest.mark.parametrize("particles", [1, 2])
def test_score_function_gradients(make: Callable[[], Case], particles: int) -> None:
    """Trap 20, and plates inside plates. Two particles get the same values here: the mean is the same."""
    assert_unbiased(make(), Trace_ELBO(num_particles=particles))


@pytest.mark.usefixtures("double")
def test_auxiliary_site_that_nothing_depends_on_has_the_gradient_of_its_entropy() -> None:
    """Trap 20, by hand: d/dq of -H(q), which an R without -log q of auxiliary sites makes 0."""

    def guide() -> None:
        sumprod.sample("a", dist.Bernoulli(sumprod.param("q")), infer=AUXILIARY)

    def model() -> None:
        pass

    q, total = 0.7, 0.0
    for value in (0.0, 1.0):
        sumprod.clear_param_store()
        sumprod.param("q", number(q), constraint=constraints.unit_interval)
        fixed = handlers.trace(guide).get_trace()
        fixed.nodes["a"]["value"] = number(value)
        Trace_ELBO().loss_and_grads(model, handlers.replay(guide, trace=fixed))
        weight = q if value else 1 - q
        total += weight * sumprod.param("q").unconstrained().grad.item()
    assert total == pytest.approx((math.log(q) - math.log(1 - q)) * q * (1 - q))


@pytest.mark.usefixtures("double")
def test_score_and_entropy_parts_of_one_site_both_contribute() -> None:
    """A draw z = loc + scale * e whose pathwise part sees `scale` alone; the score supplies `loc`.

    The exact gradient of E[-log N(z; 0, 1) + log q(z)] is that of KL(q || prior).
    """

    def build(pyro: Any, normal: Any) -> Any:
        class Partly(normal):  # type: ignore[misc]
            def rsample(self, sample_shape: Any = ()) -> Tensor:
                z: Tensor = super().rsample(sample_shape)
                return z - self.loc + self.loc.detach()

            def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
                density = dist.Normal(self.loc, self.scale)
                score = dist.Normal(self.loc, self.scale.detach()).log_prob(x.detach())
                return dist.score_parts.ScoreParts(density.log_prob(x), score, density.log_prob(x))

        def model() -> None:
            pyro.sample("z", dist.Normal(number(0.0), number(1.0)))

        def guide() -> None:
            pyro.sample("z", Partly(pyro.param("loc"), pyro.param("log_scale").exp()))

        return model, guide

    start = {"loc": 0.4, "log_scale": -0.3}
    loss, actual = quadrature_gradient(sumprod, build, start, Trace_ELBO(), draws=1, count=12)
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    kl = torch.distributions.kl_divergence(
        dist.Normal(leaves["loc"], leaves["log_scale"].exp()), dist.Normal(0.0, 1.0)
    )
    expected = torch.autograd.grad(kl, list(leaves.values()))
    assert loss == pytest.approx(kl.item())
    # log q contributes d/dloc of E[log q] = 0 pathwise, by the entropy part, besides the score.
    assert [g.item() for g in actual.values()] == pytest.approx([g.item() for g in expected])


def test_rao_blackwellisation_keeps_plate_elements_apart() -> None:
    """The cost of one row does not enter the score of another: rows with gradient zero have it exactly.

    Row 0 has an uninformative likelihood and a guide equal to its prior, so every sample of its cost is 0.
    """
    sumprod.param("q", torch.zeros(2))

    def model() -> None:
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", dist.Bernoulli(0.5))
            sumprod.sample("x", dist.Normal(torch.tensor([0.0, 3.0]) * z, 1.0), obs=torch.tensor([0.0, 2.0]))
            sumprod.factor("f", torch.tensor([0.5 * math.log(2 * math.pi), 0.0]))

    def guide() -> None:
        with sumprod.plate("rows", 2):
            sumprod.sample("z", dist.Bernoulli(logits=sumprod.param("q")))

    for _ in range(3):
        Trace_ELBO().loss_and_grads(model, guide)
    gradient = sumprod.param("q").unconstrained().grad
    assert abs(gradient[0]) < 1e-6
    assert abs(gradient[1]) > 1e-2


@pytest.mark.parametrize("vectorize", [True, False])
def test_mean_gradients_of_drawn_particles(vectorize: bool) -> None:
    """End to end, with real draws: Bernoulli and Normal latents, a subsampled plate and an auxiliary site.

    The particles are 2000 or, one by one, 400; 5 standard errors of 4 numbers fail once in 400000 seeds.
    """
    data = torch.tensor([0.3, 1.5, -0.7, 2.0])

    def model() -> None:
        c = sumprod.sample("c", dist.Bernoulli(0.3))
        m = sumprod.sample("m", dist.Normal(c, 1.0))
        with sumprod.plate("rows", 4, subsample_size=2) as i:
            sumprod.sample("x", dist.Normal(m, 2.0), obs=data[i])

    def guide() -> None:
        a = sumprod.sample("a", dist.Bernoulli(logits=sumprod.param("qa", number(0.5))), infer=AUXILIARY)
        c = sumprod.sample("c", dist.Bernoulli(logits=sumprod.param("qc", number(0.2)) + a))
        loc, scale = sumprod.param("loc", number(0.1)), sumprod.param("log_scale", number(-0.5)).exp()
        sumprod.sample("m", dist.Normal(loc + 0.5 * c, scale))

    guide()
    leaves = {name: sumprod.param(name).unconstrained() for name in ("qa", "qc", "loc", "log_scale")}
    params = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    loss: Any = 0.0
    for a in (0.0, 1.0):
        for c in (0.0, 1.0):
            qa, qc = dist.Bernoulli(logits=params["qa"]), dist.Bernoulli(logits=params["qc"] + a)
            log_q = qa.log_prob(number(a).double()) + qc.log_prob(number(c).double())
            loc, scale = params["loc"] + 0.5 * c, params["log_scale"].exp()
            q, prior = dist.Normal(loc, scale), dist.Normal(number(c).double(), 1.0)
            likelihood = dist.Normal(loc, 2.0).log_prob(data).sum() - 4 * scale**2 / (2 * 2.0**2)
            inner = likelihood - torch.distributions.kl_divergence(q, prior)
            inner = inner + dist.Bernoulli(0.3).log_prob(number(c)) - log_q
            loss = loss - log_q.exp() * inner
    exact = torch.stack(torch.autograd.grad(loss, list(params.values())))
    torch.manual_seed(11)
    batches, size = (200, 10) if vectorize else (200, 2)
    elbo = Trace_ELBO(num_particles=size, vectorize_particles=vectorize, max_plate_nesting=1)
    draws = []
    for _ in range(batches):
        for leaf in leaves.values():
            leaf.grad = None
        elbo.loss_and_grads(model, guide)
        draws.append(torch.stack([leaf.grad for leaf in leaves.values()]))
    gradients = torch.stack(draws).double()
    errors = gradients.std(0) / math.sqrt(batches)
    assert (errors < 0.3).all()
    assert ((gradients.mean(0) - exact).abs() < 5 * errors).all(), (gradients.mean(0), exact, errors)


# ---- backward


def test_parameters_outside_the_store_get_gradients() -> None:
    """Trap 25: what counts is whether the surrogate requires grad, not whether there are param sites."""
    loc = torch.tensor(0.5, requires_grad=True)

    def guide() -> None:
        sumprod.sample("z", dist.Normal(loc, 1.0))

    def discrete() -> None:
        sumprod.sample("z", dist.Bernoulli(logits=loc))

    Trace_ELBO().loss_and_grads(lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), guide)
    assert loc.grad is not None
    loc.grad = None
    Trace_ELBO().loss_and_grads(lambda: sumprod.sample("z", dist.Bernoulli(0.2)), discrete)
    assert loc.grad is not None


@pytest.mark.parametrize("fn", [dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)], ids=["normal", "bernoulli"])
def test_nothing_to_differentiate_is_no_error(fn: Any) -> None:
    """Trap 25: also with param sites that do not enter the loss, and under no_grad."""

    def program() -> None:
        sumprod.param("unused", number(0.0))
        sumprod.sample("z", fn)

    assert Trace_ELBO(num_particles=2).loss_and_grads(program, program) == 0.0
    assert sumprod.param("unused").unconstrained().grad is None
    with torch.no_grad():
        assert Trace_ELBO().loss_and_grads(program, program) == 0.0


@pytest.mark.parametrize("keep", [None, False, True])
def test_retain_graph_is_honoured(keep: bool | None) -> None:
    """Trap 26: a tensor computed before can be differentiated again only when the graph is kept."""
    loc = torch.tensor(0.5, requires_grad=True)
    shared = loc.exp()

    def guide() -> None:
        sumprod.sample("z", dist.Normal(shared, 1.0))

    def model() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    elbo = Trace_ELBO(retain_graph=keep)
    elbo.loss_and_grads(model, guide)
    if keep:
        elbo.loss_and_grads(model, guide)
    else:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            elbo.loss_and_grads(model, guide)


def test_differentiable_loss_has_the_value_of_the_loss_and_the_gradient_of_the_surrogate() -> None:
    """Trap 19: with a score function site, the two differ."""
    sumprod.param("q", number(0.3))

    def model() -> None:
        sumprod.sample("x", dist.Normal(sumprod.sample("z", dist.Bernoulli(0.5)), 1.0), obs=number(2.0))

    def guide() -> None:
        sumprod.sample("z", dist.Bernoulli(logits=sumprod.param("q")))

    leaf = sumprod.param("q").unconstrained()
    sumprod.set_rng_seed(1)
    loss = Trace_ELBO().loss_and_grads(model, guide)
    expected = leaf.grad.clone()
    sumprod.set_rng_seed(1)
    differentiable = Trace_ELBO().differentiable_loss(model, guide)
    assert differentiable.item() == pytest.approx(loss)
    assert torch.allclose(torch.autograd.grad(differentiable, leaf)[0], expected)
    assert expected.abs() > 1e-3


# ---- NaN and infinity


@pytest.mark.parametrize("sites", [1, 5])
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "NaN"), (math.inf, r"\+inf")])
@pytest.mark.parametrize("method", ["loss", "loss_and_grads", "differentiable_loss"])
@pytest.mark.filterwarnings("ignore:Encountered NaN. loss")
def test_a_site_that_is_not_finite_is_named(sites: int, value: float, shown: str, method: str) -> None:
    def model() -> None:
        for i in range(sites):
            sumprod.sample(f"z{i}", dist.Normal(0.0, 1.0), obs=number(0.0))
        sumprod.factor("f", number(value))

    with (
        sumprod.validation_enabled(False),
        handlers.util.validation_enabled(True),
        pytest.warns(UserWarning, match=f"Encountered {shown}: log_prob_sum at site 'f'"),
    ):
        result = getattr(Trace_ELBO(), method)(model, lambda: None)
    assert not math.isfinite(float(result))


def test_only_the_culprit_among_stacked_sites_is_named() -> None:
    def model() -> None:
        for i in range(5):
            sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=number(math.nan if i == 3 else 0.0))

    with (
        sumprod.validation_enabled(False),
        handlers.util.validation_enabled(True),
        pytest.warns(UserWarning, match="Encountered NaN") as caught,
    ):
        Trace_ELBO().loss(model, lambda: None)
    texts = [str(one.message) for one in caught]
    assert "Encountered NaN: log_prob_sum at site 'x3'" in texts
    assert "Encountered NaN: loss" in texts
    assert not any(f"'x{i}'" in text for text in texts for i in (0, 1, 2, 4))


def test_minus_infinity_is_a_valid_density() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = Trace_ELBO().loss(lambda: sumprod.factor("f", number(-math.inf)), lambda: None)
    assert loss == math.inf


class Peculiar(RuntimeError):
    """An exception whose constructor takes other arguments than a text."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


@pytest.mark.parametrize(
    "error",
    [
        Peculiar(7, reason="cold"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ZeroDivisionError("by zero"),
    ],
    ids=["own", "unicode", "plain"],
)
@pytest.mark.parametrize("vectorize", [False, True])
def test_exceptions_of_the_program_keep_their_class(error: Exception, vectorize: bool) -> None:
    """Trap 53: the same object comes out, with its arguments."""
    arguments = error.args

    def program() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))
        raise error

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=0)
    with pytest.raises(type(error)) as caught:
        elbo.loss(program, program)
    assert caught.value is error
    assert caught.value.args[0] == arguments[0]
    assert len(arguments) == 1 or caught.value.args == arguments
    assert not sumprod.runtime.am_i_wrapped()


# ---- stacked log-densities


def families() -> None:
    for i in range(4):
        sumprod.sample(f"normal{i}", dist.Normal(0.1 * i, 1.0 + i))
        sumprod.sample(f"laplace{i}", dist.Laplace(0.1 * i, 1.0 + i))
        sumprod.sample(f"cauchy{i}", dist.Cauchy(0.1 * i, 1.0 + i))
        sumprod.sample(f"gamma{i}", dist.Gamma(2.0 + i, 1.0 + i))
        sumprod.sample(f"exponential{i}", dist.Exponential(1.0 + i))
        sumprod.sample(f"poisson{i}", dist.Poisson(1.0 + i))
        sumprod.sample(f"double{i}", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        sumprod.sample(f"event{i}", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1 + i // 2))
        with sumprod.plate(f"rows{i}", 5):
            sumprod.sample(f"plate{i}", dist.Normal(0.0, 1.0))
            sumprod.sample(f"both{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sumprod.sample(f"bernoulli{i}", dist.Bernoulli(0.1 + 0.2 * i))
        sumprod.sample(f"logits{i}", dist.Bernoulli(logits=number(0.3 * i)))
        sumprod.sample(f"categorical{i}", dist.Categorical(torch.tensor([0.1, 0.2 + i, 0.4])))
        sumprod.sample(f"classes{i}", dist.Categorical(logits=torch.tensor([0.1, 0.2 + i, 0.4])))
        sumprod.sample(f"uniform{i}", dist.Uniform(-1.0, 1.0 + i))
        sumprod.sample(f"beta{i}", dist.Beta(1.0 + i, 2.0))
        sumprod.sample(f"lognormal{i}", dist.LogNormal(0.1 * i, 1.0))
        with handlers.scale(scale=2.0):
            sumprod.sample(f"scaled{i}", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=torch.tensor(2.0)):
            sumprod.sample(f"tensor{i}", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=3.0 + i):
            sumprod.sample(f"own{i}", dist.Normal(0.0, 1.0))
        with handlers.mask(mask=torch.tensor(True)):
            sumprod.sample(f"masked{i}", dist.Normal(0.0, 1.0))
        sumprod.sample(f"other{i}", dist.Gumbel(1.0 + i, 2.0))
    sumprod.sample("large", dist.Normal(torch.zeros(1000), 1.0).to_event(1))


def copies() -> tuple[Any, Any]:
    trace = handlers.util.prune_subsample_sites(handlers.trace(families).get_trace())
    twin = trace.copy()
    for name, site in trace.nodes.items():
        twin.nodes[name] = dict(site)
    return trace, twin


def test_stacked_log_probs_are_those_of_the_trace() -> None:
    trace, twin = copies()
    _grouped_log_prob.compute_log_probs(trace)
    twin.compute_log_prob()
    grouped = set()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            expected = twin.nodes[name]
            for key in ("log_prob", "log_prob_sum", "unscaled_log_prob"):
                assert site[key].shape == expected[key].shape, name
                assert site[key].dtype == expected[key].dtype, name
                torch.testing.assert_close(site[key], expected[key], rtol=1e-6, atol=1e-6)
            if "log_prob_group" in site:
                grouped.add(name.rstrip("0123456789"))
    assert grouped == {
        *("normal", "laplace", "cauchy", "gamma", "exponential", "poisson", "uniform", "beta", "lognormal"),
        *("double", "plate", "both", "scaled", "bernoulli", "logits", "categorical", "classes"),
    }
    assert _grouped_log_prob.log_prob_total(trace).item() == pytest.approx(
        twin.log_prob_sum().item(), rel=1e-6
    )


def test_stacked_log_probs_have_the_gradients_of_single_ones() -> None:
    leaves = [torch.tensor(0.1 * i, requires_grad=True) for i in range(5)]

    def program() -> None:
        for i, leaf in enumerate(leaves):
            sumprod.sample(f"x{i}", dist.Normal(leaf, leaf.exp()), obs=number(1.0 - i))

    gradients = []
    for stacked in (True, False):
        trace = handlers.trace(program).get_trace()
        if stacked:
            _grouped_log_prob.compute_log_probs(trace)
            assert "log_prob_group" in trace.nodes["x0"]
        gradients.append(
            torch.autograd.grad(
                _grouped_log_prob.log_prob_total(trace) if stacked else trace.log_prob_sum(), leaves
            )
        )
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("exact", [False, True])
def test_stacked_categoricals_keep_their_treatment_of_zeros(exact: bool) -> None:
    def program() -> None:
        with sumprod.settings.context(exact_zeros=exact):
            fn = dist.Categorical(torch.tensor([0.0, 1.0]))
        for i in range(3):
            sumprod.sample(f"x{i}", fn, obs=torch.tensor(0))

    loss = Trace_ELBO().loss(program, lambda: None)
    assert loss == math.inf if exact else loss == pytest.approx(3 * 15.942385)


def test_score_parts_from_stacked_log_probs_are_those_of_the_trace() -> None:
    def program() -> None:
        for i in range(4):
            with handlers.scale(scale=2.0):
                sumprod.sample(f"bernoulli{i}", dist.Bernoulli(0.1 + 0.2 * i))
            sumprod.sample(f"normal{i}", dist.Normal(0.1 * i, 1.0))
            sumprod.sample(f"switched{i}", dist.Normal(0.1 * i, 1.0).has_rsample_(False))
            sumprod.sample(f"masked{i}", dist.Bernoulli(0.1 + 0.2 * i).mask(torch.tensor(i < 2)))
            with handlers.mask(mask=torch.tensor(i < 2)):
                sumprod.sample(f"hidden{i}", dist.Bernoulli(0.1 + 0.2 * i))

    trace = handlers.trace(program).get_trace()
    twin = trace.copy()
    for name, site in trace.nodes.items():
        twin.nodes[name] = dict(site)
    compute_guide_densities(trace)
    twin.compute_score_parts()
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            for part, expected in zip(site["score_parts"], twin.nodes[name]["score_parts"], strict=True):
                assert type(part) is type(expected), name
                torch.testing.assert_close(torch.as_tensor(part), torch.as_tensor(expected))


def test_a_subclass_is_not_stacked() -> None:
    class Shifted(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            result: Tensor = super().log_prob(value) + 1
            return result

    def program() -> None:
        for i in range(4):
            sumprod.sample(f"x{i}", Shifted(0.0, 1.0), obs=number(0.0))

    zero = -0.5 * math.log(2 * math.pi)
    assert Trace_ELBO().loss(program, lambda: None) == pytest.approx(-4 * (zero + 1))


def test_an_impossible_value_among_stacked_sites_is_named() -> None:
    def program() -> None:
        for i in range(5):
            with sumprod.plate(f"rows{i}", 2):
                sumprod.sample(f"x{i}", dist.Exponential(1.0), obs=torch.full((2,), -1.0 if i == 3 else 1.0))

    with pytest.raises(
        ValueError, match="Error while computing log_prob at site 'x3' in plate 'rows3'"
    ) as caught:
        Trace_ELBO().loss(program, lambda: None)
    assert caught.value.site == "x3"
    assert "Trace Shapes:" in str(caught.value)


def test_values_that_broadcast_are_not_stacked() -> None:
    def program() -> None:
        with sumprod.plate("rows", 3):
            for i in range(4):
                sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=number(1.0))

    one = dist.Normal(0.0, 1.0).log_prob(number(1.0)).item()
    assert Trace_ELBO().loss(program, lambda: None) == pytest.approx(-12 * one)


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_changes_to_stacked_sites_count(change: str) -> None:
    """A subclass may edit the traces it makes."""

    def program() -> None:
        for i in range(4):
            sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=number(0.0))

    class Edited(Trace_ELBO):
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            pair = super()._get_trace(model, guide, args, kwargs)
            if change == "remove":
                pair[0].remove_node("x1")
            else:
                site = pair[0].nodes["x1"]
                site["log_prob_sum"] = site["log_prob_sum"] * 0
            return pair

    zero = -0.5 * math.log(2 * math.pi)
    assert Edited().loss(program, lambda: None) == pytest.approx(-3 * zero)
    assert Edited().loss_and_grads(program, lambda: None) == pytest.approx(-3 * zero)


def test_traces_and_graphs_are_freed() -> None:
    """No growth: nothing of a call is alive after it, apart from the parameters."""
    sumprod.param("loc", number(0.0))

    def model() -> None:
        for i in range(5):
            sumprod.sample(f"z{i}", dist.Normal(0.0, 1.0))
        sumprod.sample("c", dist.Bernoulli(0.5))

    def guide() -> None:
        for i in range(5):
            sumprod.sample(f"z{i}", dist.Normal(sumprod.param("loc"), 1.0))
        sumprod.sample("c", dist.Bernoulli(logits=sumprod.param("loc")))

    elbo = Trace_ELBO(num_particles=2)

    def count() -> int:
        elbo.loss_and_grads(model, guide)
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    count()
    assert count() == count()
