"""What enumeration promises at its edges; random programs are in test_random_enumeration.py."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch

import sumprod
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.infer import TraceEnum_ELBO, config_enumerate
from tests.infer.enumerated_programs import double
from tests.infer.program_runs import DEPTH, Forced, run
from tests.oracles.program import Program, Site, bound

PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
MARKS = {"parallel": PARALLEL, "sequential": SEQUENTIAL, "sampled": {}}


def empty():
    pass


def elbo(**options):
    return TraceEnum_ELBO(max_plate_nesting=DEPTH, strict_enumeration_warning=False, **options)


def coin(name, *probs, family="categorical", **options):
    parents, plates = options.pop("parents", ()), options.pop("plates", ())
    return Site(name, family, 2, parents, plates, double(*probs).log().requires_grad_(), **options)


# ---- guide sites beside variables of the model


def plated_pair(size, edge=True):
    """The model sums m out, from which what is in a plate hangs, perhaps also the guide's site g there."""
    tables = {
        "g": torch.randn(2, size, 2, dtype=torch.float64),
        "x": torch.randn(2, 2, size, 1, dtype=torch.float64),
        "q": torch.randn(size, 2, dtype=torch.float64),
    }
    tables = {name: table.requires_grad_() for name, table in tables.items()}
    m = coin("m", 0.3, 0.7)
    parents, table = (("m",), tables["g"]) if edge else ((), tables["g"][0])
    g = Site("g", "categorical", 2, parents, ("p",), table)
    x = Site("x", "normal", 1, ("m", "g"), ("p",), tables["x"], torch.ones(size, dtype=torch.float64))
    guide = Site("g", "categorical", 2, (), ("p",), tables["q"])
    return Program((m, g, x), {"p": size}), Program((guide,), {"p": size}), list(tables.values())


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("mark", [PARALLEL, SEQUENTIAL], ids=["parallel", "sequential"])
def test_enumeration_in_a_plate_below_a_variable_of_the_model_is_refused(size, mark, edge):
    program, guide, _ = plated_pair(size, edge)
    marks = {"m": PARALLEL, "g": mark}
    with pytest.raises(ValueError, match="no more global than guide enumeration, but site 'g'"):
        elbo().loss(lambda: run(program, marks), lambda: run(guide, marks))


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_score_of_sites_in_a_plate_below_a_variable_of_the_model(size, edge):
    """What is left of the variable is outside the plate, and still depends on the draws inside."""
    program, guide, tables = plated_pair(size, edge)
    expected = -bound(program, guide)
    total = torch.zeros(())
    for values in itertools.product(range(2), repeat=size):
        draws = torch.tensor([values])
        with Forced(guide, {"g": draws}), torch.no_grad():
            weight = torch.stack([tables[-1].softmax(-1)[i, v] for i, v in enumerate(values)]).prod()
        with Forced(guide, {"g": draws}):
            loss = elbo().differentiable_loss(lambda: run(program, {"m": PARALLEL}), lambda: run(guide, {}))
        total = total + weight * loss
    assert total.item() == pytest.approx(expected.item())
    found = torch.autograd.grad(total, tables)
    for one, other in zip(found, torch.autograd.grad(expected, tables), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mark", [PARALLEL, SEQUENTIAL], ids=["parallel", "sequential"])
def test_guide_site_in_a_plate_of_size_one(mark):
    """The term that is left of the model's variable is in the plate, though no dim shows it."""
    m = coin("m", [0.3, 0.7], plates=("p",))
    g = coin("g", [[0.2, 0.8]], [[0.6, 0.4]], parents=("m",), plates=("p",))
    program = Program((m, g), {"p": 1})
    guide = Program((coin("g", [0.5, 0.5], plates=("p",)),), {"p": 1})
    marks = {"m": PARALLEL, "g": mark}
    loss = elbo().loss(lambda: run(program, marks), lambda: run(guide, marks))
    assert loss == pytest.approx(-bound(program, guide).item())


@pytest.mark.parametrize("of_distributions", [False, True])
@pytest.mark.parametrize("strategy", MARKS)
def test_trap_15_masked_guide_site(strategy, of_distributions):
    """Neither log p nor log q counts where the site is masked, but its draws are weighted as ever."""
    hidden = torch.tensor(False)
    z = coin("z", 0.3, 0.7, mask=hidden)
    seen = Site("x", "normal", 1, ("z",), (), double([-1.0], [2.0]), double(1.0)[0])
    program, guide = Program((z, seen), {}), Program((coin("z", 0.6, 0.4, mask=hidden),), {})
    marks = {"z": MARKS[strategy]}
    table, total = guide["z"].table, torch.zeros(())
    for value in range(2) if strategy == "sampled" else [0]:
        forced = {"z": torch.tensor([value])} if strategy == "sampled" else {}
        with Forced(guide, forced):
            loss = elbo().differentiable_loss(
                lambda: run(program, marks, masks_of_distributions=of_distributions),
                lambda: run(guide, marks, masks_of_distributions=of_distributions),
            )
        total = total + (loss * table.detach().softmax(-1)[value] if forced else loss)
    expected = -bound(program, guide)
    assert total.item() == pytest.approx(expected.item())
    np.testing.assert_allclose(
        torch.autograd.grad(total, table)[0].numpy(), torch.autograd.grad(expected, table)[0].numpy()
    )


def test_trap_13_sequential_sites_do_not_multiply_unrelated_costs():
    """A cost outside the plate of a site counts once, not once per value of the site."""

    def model():
        sumprod.sample("y", Normal(double(0.0)[0], 1.0), obs=double(1.0)[0])
        with sumprod.plate("rows", 3):
            z = sumprod.sample("z", Categorical(double(0.2, 0.3, 0.5)))
            sumprod.sample("x", Normal(z.double(), 1.0), obs=double(0.0, 1.0, 2.0))

    def guide(mark):
        with sumprod.plate("rows", 3):
            sumprod.sample("z", Categorical(double(0.3, 0.3, 0.4)), infer=mark)

    parallel = elbo().loss(model, lambda: guide(PARALLEL))
    assert elbo().loss(model, lambda: guide(SEQUENTIAL)) == pytest.approx(parallel)


# ---- local samples


def test_one_sample_is_an_ordinary_draw():
    def model():
        sumprod.sample("x", Normal(sumprod.sample("z", Normal(0.0, 1.0)), 1.0), obs=torch.tensor(1.0))

    def guide():
        return sumprod.sample("z", Normal(0.5, 2.0))

    torch.manual_seed(0)
    plain = elbo().loss(model, guide)
    torch.manual_seed(0)
    assert elbo().loss(model, config_enumerate(guide, num_samples=1)) == plain


# ---- factors that must not be dropped


@pytest.mark.parametrize("plated", [False, True])
def test_trap_18_factor_statement_on_an_enumerated_site(plated):
    """Nothing is observed, and yet the sum over the site is not one."""
    table = double(0.5, -1.0)

    def model():
        with sumprod.plate("rows", 2 if plated else 1):
            z = sumprod.sample("z", Categorical(double(0.3, 0.7)), infer=PARALLEL)
            sumprod.factor("f", table[z])

    once = math.log(0.3 * math.exp(0.5) + 0.7 * math.exp(-1.0))
    assert elbo().loss(model, empty) == pytest.approx(-once * (2 if plated else 1))


def test_gradient_of_impossible_evidence_is_zero():
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def model():
        z = sumprod.sample("z", Categorical(logits=logits), infer=PARALLEL)
        sumprod.factor("f", torch.full((2,), -math.inf, dtype=torch.float64)[z])

    with sumprod.validation_enabled(False):
        assert elbo().loss_and_grads(model, empty) == math.inf
    assert torch.equal(logits.grad, torch.zeros(2, dtype=torch.float64))


# ---- several threads, particles


def coupled(count):
    """A chain without markov: every variable stays visible."""
    z = torch.tensor(0)
    table = double([0.7, 0.3], [0.2, 0.8])
    for i in range(count):
        z = sumprod.sample(f"z{i}", Categorical(table[z]), infer=PARALLEL)
    sumprod.sample("x", Categorical(double([0.9, 0.1], [0.4, 0.6])[z]), obs=torch.tensor(1))


def test_threads_enumerate_independently():
    """Each has dims of its own, also where the programs are run at the same time."""
    barrier = threading.Barrier(2)
    losses = {}

    def work(count):
        def model():
            coupled(count)
            barrier.wait(timeout=30)
            with sumprod.plate("rows", 2):
                z = sumprod.sample("z", Bernoulli(double(0.4)[0]), infer=PARALLEL)
                sumprod.sample("y", Normal(z, 1.0), obs=double(0.0, 1.0))

        losses[count] = [elbo().loss(model, empty) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sum(
        math.log(0.6 * math.exp(-0.5 * x * x) + 0.4 * math.exp(-0.5 * (x - 1) ** 2)) for x in (0.0, 1.0)
    )
    for count, found in losses.items():
        rest = elbo().loss(lambda count=count: coupled(count), empty)
        assert found == pytest.approx([rest - rows + math.log(2 * math.pi)] * 5)


def test_vectorized_particles_average_a_sampled_site_beside_an_enumerated_one():
    """A sum of 4,000 draws of a two-valued loss; five standard deviations: wrong once in 10^6 seeds."""
    probs = {"a": 0.3, "q": 0.6}
    particles = 4000

    def model():
        a = sumprod.sample("a", Bernoulli(double(probs["a"])[0]))
        with sumprod.plate("rows", 2):
            z = sumprod.sample("z", Bernoulli(0.2 + 0.5 * a), infer=PARALLEL)
            sumprod.sample("x", Normal(3 * z, 1.0), obs=double(0.0, 2.0))

    def guide():
        sumprod.sample("a", Bernoulli(double(probs["q"])[0]))

    values = []
    for a in (0.0, 1.0):
        p, q = (abs(1 - a - probs[name]) for name in ("a", "q"))
        z = 0.2 + 0.5 * a
        rows = sum(
            math.log((1 - z) * math.exp(-0.5 * x * x) + z * math.exp(-0.5 * (x - 3) ** 2)) for x in (0.0, 2.0)
        )
        values.append(math.log(q) - math.log(p) - rows + math.log(2 * math.pi))
    mean = 0.4 * values[0] + 0.6 * values[1]
    deviation = abs(values[1] - values[0]) * math.sqrt(0.24 / particles)
    losses = TraceEnum_ELBO(max_plate_nesting=1, num_particles=particles, vectorize_particles=True)
    assert losses.max_plate_nesting == 2
    assert abs(losses.loss(model, guide) - mean) < 5 * deviation
