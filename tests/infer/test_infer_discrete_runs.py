"""What the second run of a program with inferred discrete variables is given, and what it gives."""

import math

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Categorical, FiniteSupport, Normal
from sumprod.infer import infer_discrete

PARALLEL = {"enumerate": "parallel"}


def plated(data):
    with sumprod.plate("data", len(data)):
        z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
        sumprod.sample("x", Normal(torch.tensor([-1.0, 1.0])[z], 1.0), obs=data)
    return z


def test_support_that_depends_on_another_variable():
    """Values, not positions, of a support that differs along an enumerated parent and along a plate."""
    supports = torch.tensor([[0.0, 1.0], [10.0, 11.0]])

    def model():
        with sumprod.plate("data", 2):
            z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
            own = supports[z] + torch.tensor([[0.0], [100.0]])
            w = sumprod.sample("w", FiniteSupport(own, torch.zeros(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(w, 0.1), obs=torch.tensor([11.0, 100.0]))
        return z, w

    for temperature in (0, 1):
        z, w = infer_discrete(model, first_available_dim=-2, temperature=temperature)()
        assert z.tolist() == [1, 0]
        assert w.tolist() == [11.0, 100.0]


def test_indices_of_subsampled_plates_stay():
    def model():
        with sumprod.plate("data", 100, subsample_size=10) as index:
            z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(z.float(), 0.01), obs=(index % 2).float())
        return index, z

    index, z = infer_discrete(model, first_available_dim=-2)()
    assert torch.equal(index % 2, z)


def test_trap_31_other_latent_sites_are_drawn_again():
    draws = []

    def model():
        loc = sumprod.sample("loc", Normal(0.0, 1.0))
        draws.append(loc)
        z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
        return loc, z

    loc, _ = infer_discrete(model, first_available_dim=-1)()
    assert loc is draws[1]
    assert draws[0] != draws[1]


def test_trap_32_the_decorator_keeps_every_flag():
    @infer_discrete(first_available_dim=-2, temperature=0, strict_enumeration_warning=False)
    def quiet(data):
        """Its text."""
        return plated(data)

    assert quiet(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]
    assert (quiet.__name__, quiet.__doc__) == ("quiet", "Its text.")
    infer_discrete(first_available_dim=-1, strict_enumeration_warning=False)(lambda: None)()


def test_trap_35_densities_afterwards_are_those_of_the_model():
    """Not of the posterior: at the inferred value, the prior's density."""

    def model():
        z = sumprod.sample("z", Categorical(torch.tensor([0.2, 0.8])), infer=PARALLEL)
        sumprod.sample("x", Normal(z.float(), 0.01), obs=torch.tensor(0.0))

    one = handlers.trace(infer_discrete(model, first_available_dim=-1)).get_trace()
    one.compute_log_prob()
    assert one.nodes["z"]["log_prob"].item() == pytest.approx(math.log(0.2))


def test_a_site_that_does_not_depend_on_a_plate_keeps_its_shape():
    def model():
        z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)
        with sumprod.plate("one", 1, dim=-1), sumprod.plate("rows", 3, dim=-2):
            w = sumprod.sample("w", Categorical(torch.ones(2)), infer=PARALLEL)
            sumprod.sample("x", Normal(z + w.float(), 1.0), obs=torch.zeros(3, 1))
        return z, w

    z, w = infer_discrete(model)()
    assert z.shape == ()
    assert w.shape == (3, 1)


@pytest.mark.parametrize("wrapper", ["replay", "condition"])
def test_given_the_draws_of_a_guide(wrapper):
    """Vectorised draws are one more plate, in one call."""

    def model():
        with sumprod.plate("draws", 4, dim=-2):
            loc = sumprod.sample("loc", Normal(0.0, 10.0))
            with sumprod.plate("data", 2, dim=-1):
                z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
                sumprod.sample("x", Normal(loc * (2 * z - 1), 0.1), obs=torch.tensor([1.0, -1.0]))
        return loc, z

    locs = torch.tensor([1.0, -1.0, 0.8, -1.2]).unsqueeze(-1)
    if wrapper == "replay":
        guide_trace = handlers.trace(handlers.condition(model, data={"loc": locs})).get_trace()
        guide_trace.nodes["loc"]["is_observed"] = False
        for name in ("z", "x"):
            guide_trace.remove_node(name)
        program = handlers.replay(model, trace=guide_trace)
    else:
        program = handlers.condition(model, data={"loc": locs})
    loc, z = infer_discrete(program, first_available_dim=-3)()
    assert torch.equal(loc, locs)
    assert torch.equal(z, (locs * torch.tensor([1.0, -1.0]) > 0).long())


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_ties_are_broken_alike_for_every_batch_size(rows):
    def model():
        with sumprod.plate("data", rows):
            z = torch.tensor(0)
            values = []
            for t in sumprod.markov(range(5)):
                z = sumprod.sample(f"z{t}", Categorical(logits=torch.zeros(2, 3)[z % 2]), infer=PARALLEL)
                values.append(z)
        return values

    assert not torch.stack(infer_discrete(model, first_available_dim=-2, temperature=0)()).any()
