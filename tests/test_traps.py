"""One test for each known trap of an inference layer that no other test is named after.

`test_trap_NN_*` elsewhere: 01-04, 55, 56 (tests/handlers/test_plate.py), 08 (test_handlers.py), 28, 51, 52
(tests/params), 17, 31-35, 37-42, 54 (tests/infer), 43 (autoguide), 44, 45 (tests/optim), 49, 50
(tests/distributions), 60 (tests/test_compat.py).
"""

from __future__ import annotations

import math
import threading
import warnings

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Delta, Normal
from sumprod.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from sumprod.optim import Adam

LOSSES = [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO]


def model():
    z = sumprod.sample("z", Normal(0.0, 1.0))
    sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(1.0))
    return z


def guide():
    loc = sumprod.param("loc", torch.tensor(0.5))
    return sumprod.sample("z", Normal(loc, 0.8))


def make_svi(loss=None, **options):
    return SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO() if loss is None else loss, **options)


def test_trap_05_the_particle_plate_shows_in_max_plate_nesting():
    assert Trace_ELBO(max_plate_nesting=2).max_plate_nesting == 2
    assert Trace_ELBO(num_particles=3, max_plate_nesting=2, vectorize_particles=True).max_plate_nesting == 3
    assert Trace_ELBO(num_particles=1, max_plate_nesting=2, vectorize_particles=True).max_plate_nesting == 2
    guessed = Trace_ELBO(num_particles=3, vectorize_particles=True)
    guessed.loss(model, guide)
    assert guessed.max_plate_nesting == 1


def test_trap_06_the_guess_neither_consumes_randomness_nor_goes_stale():
    def deeper_model():
        with sumprod.plate("a", 2), sumprod.plate("b", 3):
            sumprod.sample("w", Normal(0.0, 1.0))

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    torch.manual_seed(0)
    first = elbo.loss(model, guide)
    torch.manual_seed(0)
    assert elbo.loss(model, guide) == first  # the first call has guessed, the second has not
    elbo.loss(deeper_model, deeper_model)
    assert elbo.max_plate_nesting == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_trap_19_losses_are_python_floats(loss):
    elbo = loss()
    svi = make_svi(elbo)
    for value in (
        elbo.loss(model, guide),
        elbo.loss_and_grads(model, guide),
        svi.step(),
        svi.evaluate_loss(),
    ):
        assert type(value) is float
    assert isinstance(elbo.differentiable_loss(model, guide), torch.Tensor)
    empty = loss().loss(lambda: None, lambda: None)
    assert math.copysign(1.0, empty) == 1.0  # not -0.0


def test_trap_20_auxiliary_guide_sites_count_in_the_score():
    """The gradient of E[log q(aux)] must come through the draws of the auxiliary site too."""
    logit = torch.tensor(0.3, requires_grad=True)

    def auxiliary_guide():
        sumprod.sample("aux", Bernoulli(logits=logit), infer={"is_auxiliary": True})
        sumprod.sample("z", Normal(0.0, 1.0))

    def plain_model():
        sumprod.sample("z", Normal(0.0, 1.0))

    # Only the auxiliary term log q(aux) is left in the loss: -entropy of the Bernoulli.
    exact = torch.autograd.grad(-Bernoulli(logits=logit).entropy(), logit)[0].item()
    elbo = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0)
    elbo.loss_and_grads(plain_model, auxiliary_guide)
    # The estimate's standard error is about 0.003; without the term the expectation is 0.
    assert abs(exact) > 0.05
    assert logit.grad.item() == pytest.approx(exact, abs=0.02)


def test_trap_22_the_divergence_has_the_guides_scale_and_mask():
    def scaled(scale):
        def program():
            with handlers.scale(scale=scale), sumprod.plate("data", 3):
                sumprod.sample("z", Normal(0.5, 1.0))

        return program

    def other():
        with sumprod.plate("data", 3):
            sumprod.sample("z", Normal(0.0, 1.0))

    # KL(N(0.5, 1) || N(0, 1)) = 0.125 for each of three elements.
    assert TraceMeanField_ELBO().loss(other, scaled(2.0)) == pytest.approx(2.0 * 3 * 0.125)


def test_trap_23_renyi_weighs_each_element_of_the_shared_plates():
    data = torch.tensor([0.3, -1.2, 2.0])

    def local_model():
        with sumprod.plate("data", 3):
            z = sumprod.sample("z", Normal(0.0, 1.0))
            sumprod.sample("x", Normal(z, 1.0), obs=data)

    def local_guide():
        with sumprod.plate("data", 3):
            sumprod.sample("z", Normal(0.0, 1.0))

    torch.manual_seed(1)
    loss = RenyiELBO(alpha=0.0, num_particles=4).loss(local_model, local_guide)
    torch.manual_seed(1)
    draws = torch.stack([Normal(torch.zeros(3), 1.0)() for _ in range(4)])
    weights = Normal(draws, 1.0).log_prob(data)
    expected = -(weights.logsumexp(0) - math.log(4)).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_trap_24_enumeration_warning_obeys_its_flag():
    def marked_guide():
        sumprod.sample("z", Normal(0.0, 1.0), infer={"enumerate": "parallel"})

    with pytest.warns(UserWarning, match=r"you need to use TraceEnum_ELBO instead\."):
        Trace_ELBO().loss(model, marked_guide)
    Trace_ELBO(strict_enumeration_warning=False).loss(model, marked_guide)


def test_trap_25_backward_runs_whenever_something_requires_grad():
    weight = torch.tensor(0.5, requires_grad=True)

    def without_params():
        sumprod.sample("z", Normal(weight, 1.0))

    Trace_ELBO().loss_and_grads(model, without_params)
    assert weight.grad is not None

    def fixed_guide():
        sumprod.sample("z", Normal(0.0, 1.0))

    assert isinstance(Trace_ELBO().loss_and_grads(model, fixed_guide), float)


@pytest.mark.parametrize("loss", LOSSES)
def test_trap_26_retain_graph_is_honoured(loss):
    leaf = torch.tensor(0.5, requires_grad=True)
    shared = leaf.exp()

    def sharing_guide():
        sumprod.sample("z", Normal(shared, 1.0))

    keeping = loss(retain_graph=True)
    keeping.loss_and_grads(model, sharing_guide)
    keeping.loss_and_grads(model, sharing_guide)
    freeing = loss(num_particles=1)
    freeing.loss_and_grads(model, sharing_guide)  # the last backward that the kept graph sees
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        freeing.loss_and_grads(model, sharing_guide)


def test_trap_27_gradients_are_zero_after_a_step():
    svi = make_svi()
    svi.step()
    leaf = sumprod.get_param_store()["loc"].unconstrained()
    assert leaf.grad is not None
    assert leaf.grad == 0.0


def test_trap_29_keywords_of_run_belong_to_the_model():
    seen = []

    def greedy_model(num_steps=0, num_samples=0, progress=None):
        seen.append((num_steps, num_samples, progress))
        return model()

    def greedy_guide(num_steps=0, num_samples=0, progress=None):
        return guide()

    svi = SVI(greedy_model, greedy_guide, Adam({"lr": 0.01}), Trace_ELBO(), num_steps=2, num_samples=1)
    svi.run(num_steps=7, num_samples=8, progress="mine")
    assert set(seen) == {(7, 8, "mine")}
    assert len(svi.exec_traces) == 1


def test_trap_30_no_steps_and_no_samples():
    svi = make_svi(num_samples=0)
    assert svi.run() is svi
    assert list(svi.exec_traces) == []
    assert svi.losses == []
    assert "loc" not in sumprod.get_param_store()


def test_trap_46_logsumexp_at_infinity():
    rows = torch.tensor([[-math.inf, -math.inf], [math.inf, 1.0], [0.0, -math.inf]], requires_grad=True)
    values = sumprod.logsumexp(rows, 1)
    assert values.tolist() == [-math.inf, math.inf, 0.0]
    values.sum().backward()
    assert rows.grad.tolist() == [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_trap_53_exceptions_keep_their_class():
    def undecodable():
        b"\xff".decode()

    for program in (handlers.trace(undecodable), lambda: Trace_ELBO().loss(undecodable, undecodable)):
        with pytest.raises(UnicodeDecodeError):
            program()


def test_trap_57_a_latent_missing_from_the_guide_is_counted_with_a_warning():
    def two_latents():
        sumprod.sample("w", Delta(torch.tensor(3.0), log_density=torch.tensor(-2.0)))
        return model()

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="Found vars in model but not guide: 'w'"):
        biased = Trace_ELBO().loss(two_latents, guide)
    torch.manual_seed(0)
    assert biased == pytest.approx(Trace_ELBO().loss(model, guide) + 2.0)


def test_trap_58_models_may_use_the_names_of_our_options():
    def named_model(loss, guide, name, args, kwargs):
        return model()

    def named_guide(loss, guide, name, args, kwargs):
        sumprod.sample("z", Normal(0.0, 1.0))

    options = {"loss": 1, "guide": 2, "name": 3, "args": 4, "kwargs": 5}
    svi = SVI(named_model, named_guide, Adam({"lr": 0.01}), Trace_ELBO())
    assert isinstance(svi.step(*options.values()), float)
    assert handlers.trace(named_model).get_trace(**options).nodes["_INPUT"]["kwargs"] == options


def test_trap_59_each_thread_has_its_own_stack_and_plates():
    losses, errors = {}, []
    ready = threading.Barrier(2)

    def work(label):
        def own_model():
            with sumprod.plate("same_name", 2):
                ready.wait(timeout=20)
                sumprod.sample("z", Normal(0.0, 1.0))
                ready.wait(timeout=20)

        try:
            with warnings.catch_warnings():
                losses[label] = Trace_ELBO().loss(own_model, own_model)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(label,)) for label in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert set(losses.values()) == {0.0}
