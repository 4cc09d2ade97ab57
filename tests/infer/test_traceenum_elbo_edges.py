"""What the bound with enumeration refuses, warns of, and gets right where it is easy to get wrong."""

import math
import warnings

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Binomial, Categorical, FiniteSupport, Normal, OneHotCategorical
from sumprod.errors import SupportError
from sumprod.infer import TraceEnum_ELBO, config_enumerate

PARALLEL = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def clean_store():
    yield
    sumprod.clear_param_store()


def nothing():
    pass


def quiet(**options):
    return TraceEnum_ELBO(strict_enumeration_warning=False, **options)


def test_warning_when_nothing_is_marked():
    def model():
        sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.warns(UserWarning, match="TraceEnum_ELBO found no sample sites configured for enumeration"):
        TraceEnum_ELBO().loss(model, nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet().loss(model, nothing)


def test_nothing_to_do():
    assert str(quiet().loss(nothing, nothing)) == "0.0"
    assert quiet().loss_and_grads(nothing, nothing) == 0.0
    with pytest.raises(ValueError, match="ELBO is cannot be differentiated"):
        quiet().differentiable_loss(nothing, nothing)


def test_sequential_model_sites_are_refused():
    def model():
        sumprod.sample("z", Bernoulli(0.5), infer={"enumerate": "sequential"})

    with pytest.raises(NotImplementedError, match="model-side sequential enumeration is not implemented"):
        quiet().loss(model, nothing)


def subsampled():
    z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
    with sumprod.plate("data", 4, subsample_size=2):
        sumprod.sample("x", Normal(z, 1.0), obs=torch.zeros(2))


def test_scales_must_agree():
    with pytest.raises(ValueError, match=r"share a common poutine.scale.*'z'.*'x'.*subsample_size=None"):
        quiet().loss(subsampled, nothing)


def test_scale_must_be_scalar():
    def model():
        with sumprod.plate("data", 2), handlers.scale(scale=torch.tensor([1.0, 2.0])):
            sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)

    with pytest.raises(ValueError, match=r"enumeration only supports scalar poutine.scale, but site 'z'"):
        quiet().loss(model, nothing)


def test_scalar_tensor_as_scale():
    def model(scale):
        with handlers.scale(scale=scale):
            z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
            sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(0.0))

    assert quiet().loss(model, lambda scale: None, torch.tensor([2.0])) == pytest.approx(
        quiet().loss(model, lambda scale: None, 2.0)
    )


def test_model_enumeration_more_global_than_the_guides():
    def model():
        z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        with sumprod.plate("data", 3):
            y = sumprod.sample("y", Bernoulli(0.5))
            sumprod.sample("x", Normal(z + y, 1.0), obs=torch.zeros(3))

    def guide():
        with sumprod.plate("data", 3):
            sumprod.sample("y", Bernoulli(0.5), infer=PARALLEL)

    with pytest.raises(
        ValueError, match="Expected model enumeration to be no more global than guide enumeration"
    ):
        quiet().loss(model, guide)


def test_plates_that_do_not_form_a_tree():
    def model():
        p, q = sumprod.plate("p", 2, dim=-1), sumprod.plate("q", 2, dim=-2)
        with p:
            a = sumprod.sample("a", Bernoulli(0.5), infer=PARALLEL)
        with q:
            b = sumprod.sample("b", Bernoulli(0.5), infer=PARALLEL)
        with p, q:
            sumprod.sample("x", Normal(a + b, 1.0), obs=torch.zeros(2, 2))

    with pytest.raises(NotImplementedError, match="Expected tree-structured plate nesting"):
        quiet().loss(model, nothing)


def test_dependence_on_the_inside_of_a_plate():
    def model():
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(0.0))

    with pytest.warns(RuntimeWarning, match="possibly invalid dependency: site 'x' depends on site 'z'"):
        quiet(max_plate_nesting=1).loss(model, nothing)


def test_enumerated_site_without_observed_ones_below_sums_to_one():
    def model(prior):
        sumprod.sample("z", prior, infer=PARALLEL)
        sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(0.0))

    expected = 0.5 * math.log(2 * math.pi)
    for prior in (
        Bernoulli(0.3),
        Categorical(torch.ones(1)),
        Categorical(torch.tensor([0.2, 0.8])).mask(False),
    ):
        assert quiet().loss(model, lambda prior: None, prior) == pytest.approx(expected, rel=1e-6)


def test_guide_site_with_probability_zero():
    """0 * -inf is 0, in the gradient too."""

    def model():
        sumprod.sample("z", Categorical(logits=torch.tensor([0.0, 0.0, -math.inf])))

    logits = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)

    def guide():
        sumprod.sample("z", Categorical(logits=logits), infer=PARALLEL)

    loss = quiet().loss_and_grads(model, guide)
    q = torch.tensor([0.0, 1.0]).softmax(0)
    assert loss == pytest.approx((q * (q / 0.5).log()).sum().item(), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


def test_impossible_evidence():
    def model():
        z = torch.tensor(0)
        with sumprod.plate("rows", 2):
            for t in sumprod.markov(range(4)):
                z = sumprod.sample(f"z{t}", Categorical(torch.ones(2)), infer=PARALLEL)
                floor = -math.inf if t == 2 else 0.0
                logits = torch.tensor([[0.0, 0.0], [0.0, floor]]) + 0 * z.unsqueeze(-1)
                sumprod.sample(f"x{t}", Categorical(logits=logits), obs=torch.tensor([1, 1]))

    for run in (quiet().loss, quiet().loss_and_grads, quiet().compute_marginals, quiet().sample_posterior):
        with pytest.raises(SupportError, match="'x2'") as caught:
            run(model, nothing)
        assert caught.value.site == "x2"
        assert caught.value.plate_index == {"rows": 1}
    with sumprod.validation_enabled(False):
        assert quiet().loss(model, nothing) == math.inf


def test_local_samples_are_unbiased():
    """Mean and gradient over 400 guides of 5 samples each; 5 standard errors: fails once in a million."""
    theta = torch.tensor(0.3, requires_grad=True)

    def model():
        z = sumprod.sample("z", Bernoulli(0.5))
        sumprod.sample("x", Normal(2 * z, 1.0), obs=torch.tensor(1.5))

    @config_enumerate(num_samples=5)
    def guide():
        sumprod.sample("z", Bernoulli(theta))

    exact = quiet().differentiable_loss(model, lambda: sumprod.sample("z", Bernoulli(theta), infer=PARALLEL))
    [slope] = torch.autograd.grad(exact, theta)
    sumprod.set_rng_seed(0)
    losses, slopes = [], []
    for _ in range(400):
        loss = quiet(max_plate_nesting=0).differentiable_loss(model, guide)
        losses.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, theta)[0])
    for found, expected in ((torch.stack(losses), exact.detach()), (torch.stack(slopes), slope)):
        assert abs(found.mean() - expected) < 5 * found.std() / 20


def test_marginals_keep_their_family_and_ignore_masks_of_the_variable():
    def model():
        with sumprod.plate("rows", 2):
            a = sumprod.sample("a", Bernoulli(0.3).mask(torch.tensor([True, False])), infer=PARALLEL)
            b = sumprod.sample("b", Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=PARALLEL)
            c = sumprod.sample("c", OneHotCategorical(torch.tensor([0.6, 0.4])), infer=PARALLEL)
            n = sumprod.sample("n", Binomial(2, torch.tensor(0.3)), infer=PARALLEL)
            sumprod.sample("x", Normal(a + b + c[..., 1] + n, 1.0), obs=torch.tensor([0.5, 4.0]))

    found = quiet().compute_marginals(model, nothing)
    families = {"a": Bernoulli, "b": Categorical, "c": OneHotCategorical, "n": FiniteSupport}
    assert {name: type(one) for name, one in found.items()} == families
    a, b, c, n = torch.meshgrid(*(torch.arange(size) for size in (2, 3, 2, 3)), indexing="ij")
    prior = (
        torch.tensor([0.7, 0.3])[a]
        * torch.tensor([0.2, 0.3, 0.5])[b]
        * torch.tensor([0.6, 0.4])[c]
        * torch.tensor([0.49, 0.42, 0.09])[n]
    )
    for row, x in enumerate((0.5, 4.0)):
        joint = prior * torch.exp(-0.5 * (x - (a + b + c + n)) ** 2)
        joint = joint / joint.sum()
        torch.testing.assert_close(found["a"].probs[row], joint.sum((1, 2, 3))[1])
        torch.testing.assert_close(found["b"].probs[row], joint.sum((0, 2, 3)))
        torch.testing.assert_close(found["c"].probs[row], joint.sum((0, 1, 3)))
        torch.testing.assert_close(found["n"].probs[row], joint.sum((0, 1, 2)))


def chain(data):
    z = torch.tensor(0)
    values = []
    for t in sumprod.markov(range(len(data))):
        z = sumprod.sample(f"z{t}", Categorical(torch.tensor([[0.8, 0.2], [0.3, 0.7]])[z]), infer=PARALLEL)
        sumprod.sample(f"x{t}", Normal(2.0 * z, 1.0), obs=data[t])
        values.append(z)
    return values


def test_sample_posterior():
    """Frequencies against the marginals; 5 standard errors: fails once in a million."""
    data = torch.tensor([0.3, 1.4, 1.1])
    elbo = quiet(max_plate_nesting=0)
    marginals = elbo.compute_marginals(chain, lambda data: None, data)
    sumprod.set_rng_seed(0)
    draws = torch.stack(
        [torch.stack(elbo.sample_posterior(chain, lambda data: None, data)) for _ in range(600)]
    )
    for t in range(3):
        p = marginals[f"z{t}"].probs[1]
        assert abs(draws[:, t].double().mean() - p) < 5 * (p * (1 - p) / 600).sqrt()
    recorder = handlers.trace(elbo.sample_posterior)
    values = recorder(chain, lambda data: None, data)
    assert recorder.trace.nodes["z2"]["value"] is values[2]
    assert not handlers.am_i_wrapped()


@pytest.mark.parametrize("method", ["compute_marginals", "sample_posterior"])
def test_restrictions_of_posteriors(method):
    def model():
        sumprod.sample("z", Bernoulli(0.5))

    def guide():
        sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)

    with pytest.raises(NotImplementedError, match="not compatible with multiple particles"):
        getattr(quiet(num_particles=2), method)(model, guide)
    with pytest.raises(NotImplementedError, match="not compatible with guide enumeration"):
        getattr(quiet(), method)(model, guide)


def test_deeper_plates_in_a_later_call():
    def model(deep):
        with sumprod.plate("inner", 2):
            z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
            sumprod.sample("x", Normal(z, 1.0), obs=torch.zeros(2))
        if deep:
            with sumprod.plate("outer", 3, dim=-2):
                sumprod.sample("y", Normal(0.0, 1.0), obs=torch.zeros(3, 1))

    elbo = quiet()
    shallow = elbo.loss(model, lambda deep: None, False)
    assert elbo.max_plate_nesting == 1
    assert elbo.loss(model, lambda deep: None, True) == pytest.approx(shallow + 1.5 * math.log(2 * math.pi))
    assert elbo.max_plate_nesting == 2
    with pytest.raises(ValueError, match="plate stack overflow"):
        quiet(max_plate_nesting=1).loss(model, lambda deep: None, True)


def test_trial_run_leaves_the_random_stream_alone():
    def guide():
        sumprod.sample("c", Normal(0.0, 1.0))

    def model():
        c = sumprod.sample("c", Normal(0.0, 1.0))
        z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("x", Normal(z + c, 1.0), obs=torch.tensor(0.0))

    sumprod.set_rng_seed(0)
    guessed = quiet().loss(model, guide)
    sumprod.set_rng_seed(0)
    assert quiet(max_plate_nesting=0).loss(model, guide) == guessed


@pytest.mark.parametrize("retain", [None, False, True])
def test_retain_graph(retain):
    leaf = torch.tensor(0.4, requires_grad=True)
    seen = []

    def model():
        p = leaf.sigmoid()
        seen.append(p)
        z = sumprod.sample("z", Bernoulli(p), infer=PARALLEL)
        sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(0.0))

    quiet(max_plate_nesting=0, retain_graph=retain).loss_and_grads(model, nothing)
    assert leaf.grad is not None
    if retain:
        seen[-1].backward()
    else:
        with pytest.raises(RuntimeError, match="second time"):
            seen[-1].backward()


def test_missing_plate_is_explained():
    def model():
        sumprod.sample("x", Normal(torch.zeros(3), 1.0), obs=torch.zeros(3))

    with pytest.raises(ValueError, match=r"'x'.*Invalid tensor shape|Invalid tensor shape") as caught:
        quiet(max_plate_nesting=0).loss(model, nothing)
    assert "Try adding a plate for that dim, or increasing pyro.markov history size" in str(caught.value)
    assert caught.value.site == "x"
