"""`Trace_ELBO`: values, masks and scales, when `backward` runs, warnings and errors."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO

# ---- values


def test_loss_is_minus_the_log_ratio_at_the_guides_draw() -> None:
    drawn: dict[str, Tensor] = {}

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(1.0, 2.0))
        sumprod.sample("x", dist.Poisson(z.exp()), obs=torch.tensor(3.0))

    def guide() -> None:
        drawn["z"] = sumprod.sample("z", dist.Normal(0.5, 0.3))

    loss = Trace_ELBO().loss(model, guide)
    z = drawn["z"]
    log_ratio = (
        dist.Normal(1.0, 2.0).log_prob(z)
        + dist.Poisson(z.exp()).log_prob(torch.tensor(3.0))
        - dist.Normal(0.5, 0.3).log_prob(z)
    )
    assert loss == pytest.approx(-log_ratio.item(), rel=1e-6)


def test_particles_are_averaged() -> None:
    sumprod.set_rng_seed(0)

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.0)), 1.0))

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

    expected = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)).item()
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
            sumprod.sample(f"x{i}", dist.Delta(torch.tensor(0.0), log_density=1.0), obs=torch.tensor(0.0))

    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(-6)


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
        sumprod.param("unused", torch.tensor(0.0))
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
    sumprod.param("q", torch.tensor(0.3))

    def model() -> None:
        sumprod.sample("x", dist.Normal(sumprod.sample("z", dist.Bernoulli(0.5)), 1.0), obs=torch.tensor(2.0))

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
            sumprod.sample(f"z{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        sumprod.factor("f", torch.tensor(value))

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
            sumprod.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(math.nan if i == 3 else 0.0))

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
        loss = Trace_ELBO().loss(lambda: sumprod.factor("f", torch.tensor(-math.inf)), lambda: None)
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
