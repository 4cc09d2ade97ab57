"""The bound with enumeration gives Pyro's numbers."""

import importlib

import pytest
import torch

import sumprod
from tests.infer.enumerated_programs import PAIRS, PARALLEL, double

pyro = pytest.importorskip("pyro")
LIBRARIES = (sumprod, pyro)

MODEL_SIDE = (
    "mixture",
    "mixture_with_sampled_locations",
    "subsampled_mixture",
    "masked_chain",
    "factorial_chain",
)
PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


def elbo_of(library, **options):
    infer = importlib.import_module(f"{library.__name__}.infer")
    # Given, because Pyro's trial run would draw random numbers.
    options = {"max_plate_nesting": 1, **options}
    return infer.TraceEnum_ELBO(strict_enumeration_warning=False, **options)


@pytest.fixture(autouse=True)
def clean_stores():
    yield
    for library in LIBRARIES:
        library.clear_param_store()


def results(library, name, **options):
    library.clear_param_store()
    model, guide = PAIRS[name](library)
    library.set_rng_seed(0)
    loss = elbo_of(library, **options).loss_and_grads(model, guide)
    found = {"loss": torch.tensor(loss, dtype=torch.float64)}
    for key, value in library.get_param_store().named_parameters():
        found[key] = value.grad
    library.set_rng_seed(0)
    found["differentiable"] = elbo_of(library, **options).differentiable_loss(model, guide).detach()
    return found


@pytest.mark.parametrize("options", PARTICLES, ids=["one", "looped", "vectorized"])
@pytest.mark.parametrize("name", PAIRS)
def test_losses_and_gradients(name, options):
    if name == "mixture_with_sampled_locations" and "vectorize_particles" in options:
        options = {"num_particles": 2}  # its indexing does not allow for a dim of particles
    ours, theirs = (results(library, name, **options) for library in LIBRARIES)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODEL_SIDE)
def test_marginals(name):
    found = []
    for library in LIBRARIES:
        model, guide = PAIRS[name](library)
        library.set_rng_seed(0)
        found.append(elbo_of(library).compute_marginals(model, guide))
    ours, theirs = found
    assert list(ours) == list(theirs)
    for key, marginal in ours.items():
        assert type(marginal).__name__ == type(theirs[key]).__name__
        assert marginal.batch_shape == theirs[key].batch_shape
        torch.testing.assert_close(marginal.probs, theirs[key].probs)


def test_second_derivatives():
    hessians = []
    for library in LIBRARIES:
        library.clear_param_store()
        model, guide = PAIRS["parallel_guide"](library)
        loss = elbo_of(library).differentiable_loss(model, guide)
        leaf = library.param("qb").unconstrained()
        [gradient] = torch.autograd.grad(loss, leaf, create_graph=True)
        hessians.append(torch.stack([torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient]))
    torch.testing.assert_close(*hessians)


def test_second_derivatives_through_the_elimination():
    hessians = []
    for library in LIBRARIES:
        library.clear_param_store()
        model, guide = PAIRS["masked_chain"](library)
        loss = elbo_of(library).differentiable_loss(model, guide)
        leaf = library.param("locs").unconstrained()
        [gradient] = torch.autograd.grad(loss, leaf, create_graph=True)
        hessians.append(torch.stack([torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient]))
    torch.testing.assert_close(*hessians)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_mask_inside_scale_outside(scale):
    losses = []
    for library in LIBRARIES:
        dist = library.distributions

        def model(library=library, dist=dist):
            with library.poutine.scale(scale=scale):
                z = library.sample("z", dist.Bernoulli(double(0.3)), infer=PARALLEL)
                with (
                    library.plate("data", 2, dim=-2),
                    library.poutine.mask(mask=torch.tensor([[True], [False]])),
                ):
                    library.sample("x", dist.Normal(z, double(1.0)), obs=double(0.5, 2.0).unsqueeze(-1))

        losses.append(elbo_of(library, max_plate_nesting=2).loss(model, lambda: None))
    assert losses[0] == pytest.approx(losses[1])
    z = torch.tensor([0.0, 1.0], dtype=torch.float64)
    density = torch.distributions.Normal(z, 1.0).log_prob(torch.tensor(0.5, dtype=torch.float64))
    expected = scale * torch.logsumexp(double(0.7, 0.3).log() + density, 0)
    assert losses[0] == pytest.approx(-expected.item())
