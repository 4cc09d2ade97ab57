"""`RenyiELBO`: weights per particle and per element of shared plates."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import RenyiELBO, Trace_ELBO
from tests.infer.renyi_programs import (
    ALPHAS,
    DATA,
    bound,
    global_guide,
    global_model,
    local_guide,
    local_model,
)


def traces(elbo: RenyiELBO, model: Any, guide: Any) -> list[Any]:
    sumprod.set_rng_seed(0)
    return list(elbo._get_traces(model, guide))


def log_weights(pairs: list[Any], local: bool) -> Tensor:
    rows = []
    for model_trace, guide_trace in pairs:
        terms = [
            sign * site["log_prob"].double()
            for sign, trace in ((1, model_trace), (-1, guide_trace))
            for site in trace.nodes.values()
            if site["type"] == "sample"
        ]
        rows.append(sum(terms) if local else sum(term.sum() for term in terms))
    return torch.stack(rows)


# ---- arguments


def test_signature() -> None:
    parameters = inspect.signature(RenyiELBO).parameters
    positional = {name: p.default for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "alpha": 0,
        "num_particles": 2,
        "max_plate_nesting": math.inf,
        "max_iarange_nesting": None,
        "vectorize_particles": False,
        "strict_enumeration_warning": True,
    }
    assert list(positional) == list(parameters)[: len(positional)]
    keyword_only = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert {"local_weights", "retain_graph", "ignore_jit_warnings", "jit_options"} <= set(keyword_only)


@pytest.mark.parametrize("alpha", [1, 1.0])
def test_alpha_one_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="The order alpha should not be equal to 1"):
        RenyiELBO(alpha=alpha)


@pytest.mark.parametrize("alpha", [math.inf, math.nan])
def test_alpha_must_be_finite(alpha: float) -> None:
    with pytest.raises(ValueError, match="should be a finite number"):
        RenyiELBO(alpha=alpha)


# ---- values


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_shared_plates_have_weights_of_their_own(alpha: float, vectorize: bool, local: bool) -> None:
    """Trap 23: per row with `local_weights`, per particle without."""
    elbo = RenyiELBO(alpha, num_particles=4, vectorize_particles=vectorize, local_weights=local)
    pairs = traces(elbo, local_model, local_guide)
    weights = log_weights(pairs, local or vectorize)
    if vectorize:
        weights = weights[0] if local else weights[0].sum(-1)
    assert weights.shape == ((4, 3) if local else (4,))
    sumprod.set_rng_seed(0)
    assert elbo.loss(local_model, local_guide) == pytest.approx(-bound(weights, alpha).item(), rel=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_a_site_outside_makes_a_plate_unshared(alpha: float, vectorize: bool) -> None:
    elbo = RenyiELBO(alpha, num_particles=4, vectorize_particles=vectorize)
    values = []
    for local in (True, False):
        elbo.local_weights = local
        sumprod.set_rng_seed(0)
        values.append(elbo.loss(global_model, global_guide))
    pairs = traces(RenyiELBO(alpha, num_particles=4), global_model, global_guide)
    if not vectorize:
        expected = -bound(log_weights(pairs, False), alpha).item()
        assert values[0] == pytest.approx(expected, rel=1e-5)
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_guide_site_outside_makes_a_plate_unshared() -> None:
    """An auxiliary site of the guide counts once per particle, not once per row."""

    def guide() -> None:
        sumprod.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        local_guide()

    elbo = RenyiELBO(0.0, num_particles=3)
    pairs = traces(elbo, local_model, guide)
    sumprod.set_rng_seed(0)
    assert elbo.loss(local_model, guide) == pytest.approx(
        -bound(log_weights(pairs, False), 0.0).item(), rel=1e-5
    )


def test_sequential_plates_are_summed() -> None:
    """They have no dim, though every site is in one."""

    def program(scale: float) -> Any:
        def run() -> None:
            for i in sumprod.plate("loop", 2):
                sumprod.sample(f"z{i}", dist.Normal(0.0, scale))

        return run

    elbo = RenyiELBO(0.5, num_particles=3)
    pairs = traces(elbo, program(1.0), program(2.0))
    sumprod.set_rng_seed(0)
    assert elbo.loss(program(1.0), program(2.0)) == pytest.approx(
        -bound(log_weights(pairs, False), 0.5).item(), rel=1e-5
    )


def test_importance_weighted_bound_at_alpha_zero() -> None:
    """Computed without the library's traces, from the same draws."""
    torch.manual_seed(3)
    z = 0.4 + 0.7 * torch.randn(5).double()
    log_w = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.4, 0.7).log_prob(z)
    log_w = log_w + dist.Normal(z.unsqueeze(-1), 1.0).log_prob(DATA).sum(-1)
    iwae = torch.logsumexp(log_w, 0) - math.log(5)
    torch.manual_seed(3)

    def guide() -> None:
        sumprod.sample("g", dist.Normal(0.4, 0.7))

    elbo = RenyiELBO(0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(global_model, guide) == pytest.approx(-iwae.item(), rel=1e-5)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(("model", "guide"), [(local_model, local_guide), (global_model, global_guide)])
def test_tends_to_trace_elbo_as_alpha_tends_to_one(vectorize: bool, model: Any, guide: Any) -> None:
    values, gradients = [], []
    for elbo in (
        RenyiELBO(1 - 1e-3, num_particles=6, vectorize_particles=vectorize),
        RenyiELBO(1 + 1e-3, num_particles=6, vectorize_particles=vectorize),
        Trace_ELBO(num_particles=6, vectorize_particles=vectorize),
    ):
        sumprod.set_rng_seed(0)
        values.append(elbo.loss_and_grads(model, guide))
        leaf = sumprod.param("loc").unconstrained()
        gradients.append(leaf.grad.clone())
        leaf.grad = None
    assert values[0] == pytest.approx(values[2], rel=2e-3)
    assert values[1] == pytest.approx(values[2], rel=2e-3)
    assert values[0] != values[1]
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_looped_and_vectorised_particles_agree(alpha: float) -> None:
    """Exactly, for draws that do not depend on the shape: of a Delta."""

    def guide() -> None:
        with sumprod.plate("rows", 3):
            sumprod.sample(
                "z", dist.Delta(torch.tensor([0.1, 0.2, 0.3]), log_density=torch.tensor([0.5, 0.0, 1.0]))
            )

    looped = RenyiELBO(alpha, num_particles=3).loss(local_model, guide)
    vectorised = RenyiELBO(alpha, num_particles=3, vectorize_particles=True).loss(local_model, guide)
    assert looped == pytest.approx(vectorised, rel=1e-6)


def test_one_particle_is_trace_elbo() -> None:
    values = []
    for elbo in (RenyiELBO(0.5, num_particles=1), Trace_ELBO()):
        sumprod.set_rng_seed(0)
        values.append(elbo.loss_and_grads(local_model, local_guide))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_bounds_are_ordered() -> None:
    """The bound decreases in alpha, for equal draws."""
    losses = []
    for alpha in (-2.0, 0.0, 0.5, 0.9, 2.0, 5.0):
        sumprod.set_rng_seed(0)
        losses.append(RenyiELBO(alpha, num_particles=10).loss(global_model, global_guide))
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


# ---- minibatches


def test_a_minibatch_gives_one_warning_per_plate() -> None:
    def model() -> None:
        with sumprod.plate("rows", 6, subsample_size=2):
            z = sumprod.sample("z", dist.Normal(0.0, 1.0))
            sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2))

    def guide() -> None:
        with sumprod.plate("rows", 6, subsample_size=2):
            sumprod.sample("z", dist.Normal(0.0, 1.0))

    elbo = RenyiELBO()
    with pytest.warns(
        UserWarning, match="RenyiELBO does not support minibatches: plate 'rows' draws 2 of 6"
    ) as caught:
        elbo.loss(model, guide)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss(model, guide)
        RenyiELBO().loss(local_model, local_guide)


def test_scaled_sites_keep_their_scale_in_the_weights() -> None:
    def model() -> None:
        with handlers.scale(scale=0.5):
            local_model()

    elbo = RenyiELBO(0.0, num_particles=3)
    pairs = traces(elbo, model, local_guide)
    sumprod.set_rng_seed(0)
    assert elbo.loss(model, local_guide) == pytest.approx(
        -bound(log_weights(pairs, True), 0.0).item(), rel=1e-5
    )
