"""Posterior marginals of enumerated sites of every kind, against sums over all assignments."""

import math

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import (
    Bernoulli,
    BetaBinomial,
    Binomial,
    Categorical,
    FiniteSupport,
    Normal,
    OneHotCategorical,
)
from sumprod.errors import SupportError
from sumprod.infer import TraceEnum_ELBO

PARALLEL = {"enumerate": "parallel"}
DATA = torch.tensor([0.5, 2.0, -1.0])


def nothing():
    pass


def quiet(**options):
    return TraceEnum_ELBO(strict_enumeration_warning=False, **options)


def seen_through_normal(fn):
    """A program whose site `z`, in a plate of 3, is observed with noise."""

    def model():
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", fn, infer=PARALLEL)
            total = z.sum(-1) if fn.event_shape else z
            sumprod.sample("x", Normal(total.float(), 1.0), obs=DATA)

    return model


def expected(values, prior):
    """[3, K] from values [K] or [3, K], and prior probabilities of the same shapes."""
    joint = prior * Normal(values, 1.0).log_prob(DATA.unsqueeze(-1)).exp()
    return joint / joint.sum(-1, keepdim=True)


HALF = torch.tensor(0.3)
CASES = {
    "bernoulli": (Bernoulli(HALF), Bernoulli, [0.0, 1.0], [0.7, 0.3]),
    "masked": (Bernoulli(HALF).mask(False), Bernoulli, [0.0, 1.0], [0.7, 0.3]),
    "masked rows": (
        Bernoulli(HALF).expand([3]).mask(torch.tensor([True, False, True])),
        Bernoulli,
        [0.0, 1.0],
        [0.7, 0.3],
    ),
    "expanded mask": (
        Categorical(torch.tensor([0.5, 0.1, 0.4])).mask(False).expand([3]),
        Categorical,
        [0.0, 1.0, 2.0],
        [0.5, 0.1, 0.4],
    ),
    "rows": (
        Categorical(torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])),
        Categorical,
        [0.0, 1.0],
        [[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]],
    ),
    "binomial": (Binomial(2, HALF), FiniteSupport, [0.0, 1.0, 2.0], [0.49, 0.42, 0.09]),
    "binomial of a tensor": (
        Binomial(torch.tensor([2.0, 2.0, 2.0]), HALF),
        FiniteSupport,
        [0.0, 1.0, 2.0],
        [0.49, 0.42, 0.09],
    ),
    "beta-binomial": (
        BetaBinomial(torch.tensor(1.0), torch.tensor(1.0), total_count=torch.tensor(2.0)),
        FiniteSupport,
        [0.0, 1.0, 2.0],
        [1 / 3] * 3,
    ),
    "finite": (
        FiniteSupport(torch.tensor([-1.0, 4.0]), torch.tensor([0.25, 0.75]).log()),
        FiniteSupport,
        [-1.0, 4.0],
        [0.25, 0.75],
    ),
    "finite, by row": (
        FiniteSupport(torch.tensor([[0.0, 1.0], [2.0, 5.0], [-1.0, 1.0]]), torch.zeros(3, 2)),
        FiniteSupport,
        [[0.0, 1.0], [2.0, 5.0], [-1.0, 1.0]],
        [0.5, 0.5],
    ),
    "one value": (Categorical(torch.ones(1)), Categorical, [0.0], [1.0]),
    "one value, binomial": (Binomial(0, HALF), FiniteSupport, [0.0], [1.0]),
    "one hot": (OneHotCategorical(torch.tensor([0.2, 0.8])), OneHotCategorical, [1.0, 1.0], [0.2, 0.8]),
    "one value, one hot": (OneHotCategorical(torch.ones(1)), OneHotCategorical, [1.0], [1.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_families(case):
    fn, family, values, prior = CASES[case]
    found = quiet().compute_marginals(seen_through_normal(fn), nothing)["z"]
    assert type(found) is family
    assert found.batch_shape == (3,)
    assert found.event_shape == fn.event_shape
    probs = expected(torch.tensor(values), torch.tensor(prior))
    # rounding in float32; a probability of 0 given to Categorical is one of 1e-7
    torch.testing.assert_close(found.probs, probs[:, 1] if family is Bernoulli else probs, atol=1e-5, rtol=0)
    if family is FiniteSupport:
        assert torch.equal(found.values.expand(probs.shape), torch.tensor(values).expand(probs.shape))


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_shape_of_an_ordinary_run(case):
    model = seen_through_normal(CASES[case][0])

    def shapes(one):
        return {name: site["value"].shape for name, site in one.nodes.items() if site["type"] == "sample"}

    ordinary = handlers.trace(model).get_trace()
    assert shapes(handlers.trace(quiet().sample_posterior).get_trace(model, nothing)) == shapes(ordinary)


def test_supports_of_different_sizes_are_refused():
    model = seen_through_normal(Binomial(torch.tensor([1.0, 2.0, 3.0]), HALF))
    with pytest.raises(NotImplementedError, match="Inhomogeneous total count") as caught:
        quiet().compute_marginals(model, nothing)
    assert "site 'z'" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_support_that_depends_on_another_enumerated_site():
    def model():
        z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("w", FiniteSupport(torch.stack([z, z + 2], -1), torch.zeros(2)), infer=PARALLEL)

    with pytest.raises(NotImplementedError, match="'w': the support of FiniteSupport depends on another"):
        quiet(max_plate_nesting=0).compute_marginals(model, nothing)


def test_order_is_that_of_the_model_and_guide_sites_are_left_out():
    def model():
        sumprod.sample("z2", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("z0", Bernoulli(0.5))
        with sumprod.plate("data", 2, dim=-2), sumprod.plate("one", 1, dim=-1):
            sumprod.sample("z1", Bernoulli(0.5), infer=PARALLEL)

    found = quiet().compute_marginals(model, lambda: sumprod.sample("z0", Bernoulli(0.5)))
    assert [(name, one.batch_shape) for name, one in found.items()] == [("z2", ()), ("z1", (2, 1))]


def test_marginals_have_gradients():
    """Of p(z = 1 | x) with respect to the logit a of the prior: p (1 - p)."""
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def model():
        z = sumprod.sample("z", Bernoulli(logits=a), infer=PARALLEL)
        sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(1.3, dtype=torch.float64))

    p = quiet(max_plate_nesting=0).compute_marginals(model, nothing)["z"].probs
    [slope] = torch.autograd.grad(p, a)
    exact = torch.sigmoid(a + 1.3 - 0.5).detach()
    torch.testing.assert_close(p.detach(), exact)
    torch.testing.assert_close(slope, exact * (1 - exact))


def test_scale_does_not_matter():
    def model(scale):
        with handlers.scale(scale=scale):
            z = sumprod.sample("z", Bernoulli(0.3), infer=PARALLEL)
            sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(1.3))

    found = [
        quiet(max_plate_nesting=0).compute_marginals(model, lambda scale: None, scale)["z"].probs.item()
        for scale in (1.0, 5.0)
    ]
    assert found[0] == found[1]
    odds = 3 / 7 * math.exp(1.3 - 0.5)
    assert found[0] == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("masked", ["z", "x", "both"])
def test_trap_17_one_definition_of_a_masked_variable(masked):
    """Loss, marginals, posterior draws and infer_discrete: the variable keeps its prior."""

    def model():
        with sumprod.plate("data", 20_000):
            with handlers.mask(mask=masked == "x"):
                z = sumprod.sample("z", Bernoulli(0.1), infer=PARALLEL)
            with handlers.mask(mask=masked == "z"):
                sumprod.sample("x", Bernoulli(0.2 + 0.6 * z), obs=torch.tensor(1.0))
        return z

    elbo = quiet(max_plate_nesting=1)
    p = 0.1 * 0.8 / (0.1 * 0.8 + 0.9 * 0.2) if masked == "z" else 0.1
    evidence = 0.26 if masked == "z" else 1.0
    assert elbo.loss(model, nothing) == pytest.approx(-20_000 * math.log(evidence), rel=1e-4, abs=1e-2)
    torch.testing.assert_close(elbo.compute_marginals(model, nothing)["z"].probs[0], torch.tensor(p))
    sumprod.set_rng_seed(0)
    for z in (elbo.sample_posterior(model, nothing), sumprod.infer.infer_discrete(model, -2)()):
        # 5 standard errors: fails with probability 6e-7 for another generator
        assert abs(z.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / 20_000)
    assert not sumprod.infer.infer_discrete(model, -2, temperature=0)().any()


def test_impossible_evidence():
    def model():
        z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
        sumprod.sample("x", Categorical(logits=torch.tensor([[0.0, -torch.inf]] * 2)[z]), obs=torch.tensor(1))

    elbo = quiet(max_plate_nesting=0)
    for method in (elbo.compute_marginals, elbo.sample_posterior, elbo.loss):
        with pytest.raises(SupportError) as caught:
            method(model, nothing)
        assert caught.value.site == "x"
    with sumprod.validation_enabled(False):
        assert elbo.compute_marginals(model, nothing)["z"].probs.tolist() == [1.0, 0.0]
        assert elbo.loss(model, nothing) == math.inf
