"""`TraceMeanField_ELBO`: analytic divergences, with the guide's scale and mask."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch.distributions import kl_divergence

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO, TraceMeanField_ELBO

AUXILIARY = {"is_auxiliary": True}


def loss(model: Any, guide: Any) -> float:
    """The loss, which is the same from all three methods for one seed."""
    elbo = TraceMeanField_ELBO()
    values = []
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        sumprod.set_rng_seed(0)
        value = method(model, guide)
        values.append(value.item() if isinstance(value, torch.Tensor) else value)
    assert values == [values[0]] * 3
    return values[0]


def one_site(fn: Any, **handler: Any) -> Any:
    def program() -> None:
        sumprod.sample("z", fn)

    if "scale" in handler:
        return handlers.scale(program, scale=handler["scale"])
    return handlers.mask(program, mask=handler["mask"]) if "mask" in handler else program


P, Q = dist.Normal(0.0, 1.0), dist.Normal(1.0, 0.5)
KL = kl_divergence(Q, P).item()


def test_divergence_replaces_the_sampled_difference() -> None:
    assert loss(one_site(P), one_site(Q)) == pytest.approx(KL)


def test_gradients_are_those_of_the_divergence() -> None:
    def guide() -> None:
        sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.7)), 1.0))

    TraceMeanField_ELBO(num_particles=3).loss_and_grads(one_site(P), guide)
    assert sumprod.param("loc").unconstrained().grad.item() == pytest.approx(0.7)


def test_scale_and_mask_are_those_of_the_guide() -> None:
    """Trap 22."""
    assert loss(one_site(P), one_site(Q, scale=3.0)) == pytest.approx(3 * KL)
    assert loss(one_site(P, scale=3.0), one_site(Q)) == pytest.approx(KL)
    mask = torch.tensor([True, False, True])

    def program(fn: Any, **kwargs: Any) -> Any:
        def in_plate() -> None:
            with sumprod.plate("rows", 3), handlers.mask(mask=mask):
                sumprod.sample("z", fn)

        return in_plate

    assert loss(program(P), program(Q)) == pytest.approx(2 * KL)


@pytest.mark.parametrize(
    ("model_mask", "guide_mask"),
    [(None, False), (False, None), (None, torch.tensor(False)), (torch.tensor(True), torch.tensor(False))],
)
def test_masks_that_differ_are_an_error(model_mask: Any, guide_mask: Any) -> None:
    model = one_site(P) if model_mask is None else one_site(P, mask=model_mask)
    guide = one_site(Q) if guide_mask is None else one_site(Q, mask=guide_mask)
    with pytest.raises(ValueError, match="the masks of site 'z' in model and guide differ"):
        TraceMeanField_ELBO().loss(model, guide)


@pytest.mark.parametrize(
    ("model_mask", "guide_mask"),
    [(None, True), (torch.tensor(True), None), (torch.tensor(True), torch.tensor(True))],
)
def test_masks_that_mean_the_same_are_none(model_mask: Any, guide_mask: Any) -> None:
    model = one_site(P) if model_mask is None else one_site(P, mask=model_mask)
    guide = one_site(Q) if guide_mask is None else one_site(Q, mask=guide_mask)
    assert loss(model, guide) == pytest.approx(KL)


def test_masked_distributions() -> None:
    assert loss(one_site(P.mask(False)), one_site(Q.mask(False))) == 0.0
    mask = torch.tensor(True)
    assert loss(one_site(P.mask(mask)), one_site(Q.mask(mask))) == pytest.approx(KL)


def test_divergences_are_expanded_to_the_plates() -> None:
    """Trap 22: each of the 2 x 3 elements counts, whatever shape the parameters have."""

    def program(fn: Any) -> Any:
        def in_plates() -> None:
            with sumprod.plate("rows", 2, dim=-2), sumprod.plate("columns", 3, dim=-1):
                sumprod.sample("z", fn)

        return in_plates

    assert loss(program(P), program(Q)) == pytest.approx(6 * KL)
    assert loss(program(P.mask(False)), program(Q.mask(False))) == 0.0
    event = [fn.expand_by([4]).to_event(1) for fn in (P, Q)]
    assert loss(program(event[0]), program(event[1])) == pytest.approx(24 * KL)


def test_many_sites_of_a_kind() -> None:
    """They are evaluated in one call; scales, events, plates and unknown divergences in between count."""

    def program(shift: float, student: bool) -> Any:
        def run() -> None:
            for i in range(4):
                normal = dist.Normal(shift * i, 1.0 + i)
                sumprod.sample(f"normal{i}", normal)
                sumprod.sample(f"event{i}", normal.expand_by([2, 3]).to_event(1 + i // 2))
                sumprod.sample(f"gamma{i}", dist.Gamma(2.0 + shift, 1.0 + i))
                with handlers.scale(scale=0.5):
                    sumprod.sample(f"scaled{i}", normal)
                with sumprod.plate(f"rows{i}", 3):
                    sumprod.sample(f"plate{i}", normal)
                with handlers.mask(mask=torch.tensor(i < 2)):
                    sumprod.sample(f"masked{i}", normal)
                sumprod.sample(f"mixed{i}", dist.StudentT(5.0) if student else dist.Normal(0.0, 1.0))

        return run

    model, guide = program(0.0, True), program(0.3, False)
    with sumprod.validation_enabled(False):  # events of a batch have no plate here
        sumprod.set_rng_seed(2)
        actual = TraceMeanField_ELBO().loss(model, guide)
    model_trace = handlers.trace(model).get_trace()
    sumprod.set_rng_seed(2)
    guide_trace = handlers.trace(guide).get_trace()
    expected = 0.0
    for name, site in guide_trace.nodes.items():
        if site["type"] == "sample" and not handlers.util.site_is_subsample(site):
            p, q, z = model_trace.nodes[name]["fn"], site["fn"], site["value"]
            known = "mixed" not in name
            term = kl_divergence(q, p) if known else q.log_prob(z) - p.log_prob(z)
            mask = 1.0 if site["mask"] is None else site["mask"].float()
            expected += (term * mask * site["scale"]).sum().item()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_delta_guides_give_the_log_density() -> None:
    guide = one_site(dist.Delta(torch.tensor(0.7)))
    assert loss(one_site(P), guide) == pytest.approx(-P.log_prob(torch.tensor(0.7)).item())


def test_observed_auxiliary_and_unregistered_sites_are_sampled() -> None:
    """Equal to Trace_ELBO for the same draws, where nothing has a divergence: StudentT against Normal."""

    def model() -> None:
        z = sumprod.sample("z", dist.StudentT(5.0, 0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        a = sumprod.sample("a", dist.Normal(0.3, 1.0), infer=AUXILIARY)
        sumprod.sample("z", dist.Normal(a, sumprod.param("scale", torch.tensor(0.8))))

    value = loss(model, guide)
    leaf = sumprod.param("scale").unconstrained()
    gradient, leaf.grad = leaf.grad / 1.0, None
    sumprod.set_rng_seed(0)
    assert Trace_ELBO().loss_and_grads(model, guide) == pytest.approx(value, rel=1e-5)
    assert leaf.grad.item() == pytest.approx(gradient.item(), rel=1e-5)


def test_guide_without_reparameterisation() -> None:
    program = one_site(dist.Bernoulli(0.5))
    with pytest.raises(
        NotImplementedError,
        match=r"All distributions in the guide must be fully reparameterized\. Site 'z' draws from Bernoulli",
    ):
        TraceMeanField_ELBO().loss(program, program)
    with sumprod.validation_enabled(False):
        assert TraceMeanField_ELBO().loss(program, one_site(dist.Bernoulli(0.2))) == pytest.approx(
            kl_divergence(dist.Bernoulli(0.2), dist.Bernoulli(0.5)).item()
        )


def test_sites_in_another_order() -> None:
    def model() -> None:
        sumprod.sample("a", P)
        sumprod.sample("b", P)

    def guide() -> None:
        sumprod.sample("b", Q)
        sumprod.sample("a", Q)

    with pytest.warns(
        UserWarning,
        match=r"Failed to verify mean field restriction on the guide.*\nModel sites: a, b\nGuide sites: b, a",
    ):
        TraceMeanField_ELBO().loss(model, guide)
    with warnings.catch_warnings(), sumprod.validation_enabled(False):
        warnings.simplefilter("error")
        assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(2 * KL)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("method", ["loss", "loss_and_grads", "differentiable_loss"])
@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_latent_that_the_guide_lacks(method: str, error: type[Exception]) -> None:
    def model() -> None:
        sumprod.sample("height", P)
        sumprod.sample("width", P)

    with pytest.raises(
        error, match=r"TraceMeanField_ELBO needs a guide site.*'width' is not in the guide.*'height'"
    ):
        getattr(TraceMeanField_ELBO(), method)(model, lambda: sumprod.sample("height", Q))


def test_batch_dim_without_a_plate() -> None:
    program = one_site(dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(
        ValueError, match=r"at site 'z', invalid log_prob shape\n  Expected \[\], actual \[3\]"
    ):
        TraceMeanField_ELBO().loss(program, program)


def test_divergence_that_does_not_fit_the_guide() -> None:
    model, guide = one_site(dist.Normal(torch.zeros(2), 1.0)), one_site(Q)
    with (
        sumprod.validation_enabled(False),
        pytest.raises(
            ValueError,
            match=r"KL divergence at site 'z' has shape \(2,\), but the guide's batch shape is \(\)",
        ),
    ):
        TraceMeanField_ELBO().loss(model, guide)


def test_densities_of_sites_with_a_divergence_are_not_computed() -> None:
    class Unevaluated(dist.Normal):
        def log_prob(self, value: Any) -> Any:
            raise AssertionError("nothing needs this density")

    fn = Unevaluated(0.0, 1.0)
    assert TraceMeanField_ELBO().loss_and_grads(one_site(fn), one_site(fn)) == 0.0


def test_converges_to_the_posterior_of_a_conjugate_model() -> None:
    """z ~ N(0, 1), three data of N(z, 1): the posterior is N(sum / 4, 1 / 4)."""
    data = torch.tensor([1.0, 2.0, 3.0])

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        with sumprod.plate("rows", 3):
            sumprod.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide() -> None:
        scale = sumprod.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.0)), scale))

    elbo = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = sumprod.infer.SVI(model, guide, sumprod.optim.Adam({"lr": 0.05}), elbo)
    svi.fit(300)
    assert sumprod.param("loc").item() == pytest.approx(1.5, abs=0.1)
    assert sumprod.param("scale").item() == pytest.approx(0.5, abs=0.1)
    evidence = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(data).item()
    assert -sum(svi.losses[-50:]) / 50 == pytest.approx(evidence, abs=0.1)
    assert math.isfinite(svi.losses[0])
