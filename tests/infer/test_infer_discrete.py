"""Inferred discrete variables, against brute force."""

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Normal, OneHotCategorical
from sumprod.errors import SupportError
from sumprod.infer.discrete import infer_discrete
from tests.infer.discrete_programs import programs

PARALLEL = {"enumerate": "parallel"}
SLOW = settings(max_examples=30, deadline=None, derandomize=True)


def values_of(program, **options):
    one = handlers.trace(infer_discrete(program, **options)).get_trace()
    return {
        name: site["value"]
        for name, site in one.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def joint(program, values):
    """log p of an assignment, masked and not scaled."""
    conditioned = handlers.condition(lambda: program.model(None), data=values)
    total = 0.0
    for site in handlers.trace(conditioned).get_trace().nodes.values():
        if site["type"] == "sample" and hasattr(site["fn"], "log_prob") and "logits" in vars(site["fn"]):
            log_prob = site["fn"].log_prob(site["value"])
            mask = site["mask"]
            total += (log_prob * mask if isinstance(mask, torch.Tensor) else log_prob).sum().item()
    return total


def assignments(program):
    """Every assignment of the latent sites, plates included."""
    sizes = {"p": 2, "q": 3}
    shapes = {(): (), ("p",): (2,), ("q",): (3, 1), ("q", "p"): (3, 2)}
    latent = program.latent
    spaces = [
        [
            torch.tensor(flat).reshape(shapes[node.plates])
            for flat in itertools.product(
                range(node.size), repeat=math.prod(sizes[name] for name in node.plates)
            )
        ]
        for node in latent
    ]
    for choice in itertools.product(*spaces):
        yield {node.name: value for node, value in zip(latent, choice, strict=True)}


@SLOW
@given(programs())
def test_most_probable_assignment(program):
    found = values_of(program.model, first_available_dim=-3, temperature=0)
    found = {node.name: found[node.name] for node in program.latent}
    if (
        math.prod(node.size ** math.prod({"p": 2, "q": 3}[p] for p in node.plates) for node in program.latent)
        <= 256
    ):
        best = max(joint(program, values) for values in assignments(program))
        assert joint(program, found) == pytest.approx(best, abs=1e-9)
    shapes = {(): (), ("p",): (2,), ("q",): (3, 1), ("q", "p"): (3, 2)}
    for node in program.latent:
        assert found[node.name].shape == shapes[node.plates]


def test_joint_draws():
    """Chi-square over all 8 assignments of a chain; fails with probability 1e-4 for another generator."""
    initial, transition = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    emission, data = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), [0, 1, 1]

    def model():
        with sumprod.plate("copies", 20_000):
            z = None
            values = []
            for t in sumprod.markov(range(3)):
                z = sumprod.sample(
                    f"z{t}", Categorical(initial if z is None else transition[z]), infer=PARALLEL
                )
                sumprod.sample(f"x{t}", Categorical(emission[z]), obs=torch.tensor(data[t]))
                values.append(z)
        return values

    sumprod.set_rng_seed(0)
    drawn = infer_discrete(model, first_available_dim=-2)()
    code = drawn[0] * 4 + drawn[1] * 2 + drawn[2]
    counts = torch.bincount(code, minlength=8)
    weights = torch.stack(
        [
            initial[a]
            * emission[a, data[0]]
            * transition[a, b]
            * emission[b, data[1]]
            * transition[b, c]
            * emission[c, data[2]]
            for a, b, c in itertools.product(range(2), repeat=3)
        ]
    ).double()
    expected = weights / weights.sum() * 20_000
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


def test_second_run_is_returned_and_seen():
    drawn = []

    def model():
        z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        x = sumprod.sample("x", Normal(z, 1.0))
        drawn.append(x)
        sumprod.sample("y", Normal(4 * z, 0.1), obs=torch.tensor(4.0))
        return z, x

    sumprod.set_rng_seed(1)
    recorder = handlers.trace(infer_discrete(model, first_available_dim=-1))
    z, x = recorder()
    assert len(drawn) == 2
    assert recorder.trace.nodes["x"]["value"] is x
    assert z.shape == x.shape == ()
    assert z.item() == 1.0
    assert not recorder.trace.nodes["z"]["is_observed"]
    # What is not enumerated is drawn again, not kept from the first run.
    assert not torch.any(drawn[0] == x)


@pytest.mark.parametrize("temperature", [0, 0.0, False, 1, 1.0, True])
def test_trap_33_temperatures(temperature):
    def model():
        return sumprod.sample("z", Categorical(torch.tensor([0.0, 1.0, 0.0])), infer=PARALLEL)

    assert infer_discrete(model, first_available_dim=-1, temperature=temperature)().item() == 1


@pytest.mark.parametrize("temperature", [2, 0.5, -1, "1", None])
def test_trap_33_other_temperatures(temperature):
    with pytest.raises(ValueError, match=r"temperature must be 0 \(map\) or 1 \(sample\)"):
        infer_discrete(lambda: None, first_available_dim=-1, temperature=temperature)


def test_ties_go_to_the_lowest_index():
    def model():
        with sumprod.plate("data", 3):
            return sumprod.sample("z", Categorical(torch.ones(3, 4)), infer=PARALLEL)

    assert infer_discrete(model, first_available_dim=-2, temperature=0)().tolist() == [0, 0, 0]


@pytest.mark.parametrize("as_decorator", [False, True])
def test_warning_without_marks(as_decorator):
    def model():
        return sumprod.sample("x", Normal(0.0, 1.0))

    def wrapped(**options):
        if as_decorator:
            return infer_discrete(first_available_dim=-1, **options)(model)
        return infer_discrete(model, first_available_dim=-1, **options)

    with pytest.warns(UserWarning, match="infer_discrete found no sample sites configured for enumeration"):
        wrapped()()
    wrapped(strict_enumeration_warning=False)()


@pytest.mark.parametrize("dim", [0, 1])
def test_first_available_dim_is_negative(dim):
    with pytest.raises(ValueError, match="first_available_dim < 0"):
        infer_discrete(lambda: None, first_available_dim=dim)


def plated(data):
    with sumprod.plate("data", len(data)):
        z = sumprod.sample("z", Categorical(torch.ones(2)), infer=PARALLEL)
        sumprod.sample("x", Normal(torch.tensor([-1.0, 1.0])[z], 1.0), obs=data)
    return z


def test_trap_34_first_available_dim_that_collides_with_a_plate():
    with pytest.raises(ValueError, match="first_available_dim=-2"):
        infer_discrete(plated, first_available_dim=-1)(torch.tensor([1.0, 2.0]))


def test_first_available_dim_is_found():
    state = torch.get_rng_state()
    assert infer_discrete(plated, temperature=0)(torch.tensor([-1.0, 2.0])).tolist() == [0, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_count_and_scales_do_not():
    def model(scale, mask):
        with handlers.scale(scale=scale):
            z = sumprod.sample("z", Bernoulli(0.3), infer=PARALLEL)
            with handlers.mask(mask=mask):
                sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(1.2))
        return z

    # odds of z: 3/7 exp(0.72 - 0.02) = 0.86, so that 0 is the better value; scaled twice it is worse still
    assert infer_discrete(model, -1, 0)(1.0, True).item() == 0.0
    odds = 3 / 7 * math.exp(0.72 - 0.02)
    assert odds < 1 < 3 / 7 * math.exp(2 * 0.7)
    assert infer_discrete(model, -1, 0)(3.0, True).item() == 0.0
    assert infer_discrete(model, -1, 0)(1.0, torch.tensor(False)).item() == 0.0


@pytest.mark.parametrize("masked", [(True, True), (True, False)])
def test_masked_latent_site_follows_its_prior(masked):
    """The same definition as in the bound: a mask on the variable itself has no effect."""

    def model():
        with sumprod.plate("copies", 20_000):
            with handlers.mask(mask=not masked[0]):
                z = sumprod.sample("z", Bernoulli(0.1), infer=PARALLEL)
            with handlers.mask(mask=not masked[1]):
                sumprod.sample("x", Bernoulli(0.2 + 0.6 * z), obs=torch.tensor(1.0))
        return z

    sumprod.set_rng_seed(0)
    share = infer_discrete(model, first_available_dim=-2)().mean().item()
    expected = 0.1 if masked[1] else 0.1 * 0.8 / (0.1 * 0.8 + 0.9 * 0.2)
    # 5 standard errors: fails with probability 6e-7 for another generator
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)


def impossible(t):
    def model():
        z = torch.tensor(0)
        with sumprod.plate("batch", 3):
            for i in sumprod.markov(range(6)):
                z = sumprod.sample(f"z{i}", Categorical(logits=torch.zeros(2, 2)[z]), infer=PARALLEL)
                logits = torch.zeros(3, 2)
                if i == t:
                    logits[1] = torch.tensor([0.0, -math.inf])
                data = torch.ones(3, dtype=torch.long)
                sumprod.sample(f"x{i}", Categorical(logits=logits + 0 * z.unsqueeze(-1)), obs=data)
        return z

    return model


@pytest.mark.parametrize("t", [0, 3, 5])
@pytest.mark.parametrize("temperature", [0, 1])
def test_impossible_evidence(t, temperature):
    with pytest.raises(SupportError) as caught:
        infer_discrete(impossible(t), first_available_dim=-2, temperature=temperature)()
    assert caught.value.site == f"x{t}"
    assert caught.value.time == t
    assert caught.value.plate_index == {"batch": 1}
    assert f"z{t}" in caught.value.factors
    with sumprod.validation_enabled(False):
        states = infer_discrete(impossible(t), first_available_dim=-2, temperature=temperature)()
    assert states[1].item() == 0


def test_event_dims_and_expanded_values():
    def model(expand):
        with sumprod.plate("data", 3):
            z = sumprod.sample(
                "z",
                OneHotCategorical(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])),
                infer={**PARALLEL, "expand": expand},
            )
        return z

    for expand in (False, True):
        found = infer_discrete(model, first_available_dim=-2)(expand)
        assert found.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_single_value_and_single_row():
    def model():
        with sumprod.plate("one", 1):
            z = sumprod.sample("z", Categorical(torch.ones(1)), infer=PARALLEL)
            w = sumprod.sample("w", Categorical(torch.tensor([[0.0, 1.0]])), infer=PARALLEL)
        return z, w

    z, w = infer_discrete(model, first_available_dim=-2)()
    assert z.tolist() == [0]
    assert w.tolist() == [1]


@pytest.mark.parametrize("temperature", [0, 1])
def test_long_chain(temperature):
    """A chain that must count up: 1,000 steps of a cycle of 5 states."""
    shift = torch.eye(5).roll(1, -1)

    def model():
        values = []
        z = torch.tensor(4)
        for t in sumprod.markov(range(1000)):
            z = sumprod.sample(f"z{t}", Categorical(shift[z]), infer=PARALLEL)
            values.append(z)
        return values

    found = torch.stack(infer_discrete(model, first_available_dim=-1, temperature=temperature)())
    assert torch.equal(found, torch.arange(1000) % 5)


@SLOW
@given(st.integers(0, 2**31))
def test_equal_seeds_give_equal_draws(seed):
    data = torch.tensor([0.1, -0.2, 0.3, 0.0])
    sumprod.set_rng_seed(seed)
    first = infer_discrete(plated, first_available_dim=-2)(data)
    sumprod.set_rng_seed(seed)
    assert torch.equal(infer_discrete(plated, first_available_dim=-2)(data), first)
